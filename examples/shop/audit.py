"""The account of a day: what became of each line that was handed in, by the books of those who dealt with it.

It asks the departments' tables and the dead letter queues. A line has one end, or something is wrong: one without
an end is missing, and one with two was counted twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from carteiro.message import DeadLetter
from examples.shop.db import Invoice, Payment, Reservation, Shipment

BYSTANDERS = ("desk", "newsletter", "audit")
"""Groups that decide nothing: a dead letter of theirs does not end an order."""


class End(NamedTuple):
    """`outcome` is `shipped`, `cancelled` or `dead`."""

    outcome: str
    reason: str = ""


class Line(NamedTuple):
    """A line of the input, and the id of the message that it travelled as."""

    number: int
    text: str
    message_id: str

    def __str__(self) -> str:
        return f"line {self.number}: {self.text}"


@dataclass
class Account:
    """The ends of each line."""

    total: int
    ends: Counter[End] = field(default_factory=Counter)
    missing: list[Line] = field(default_factory=list)
    twice: list[Line] = field(default_factory=list)

    @property
    def balanced(self) -> bool:
        return not self.missing and not self.twice and self.ends.total() == self.total

    def outcomes(self) -> dict[str, int]:
        totals: Counter[str] = Counter()
        for end, number in self.ends.items():
            totals[end.outcome] += number
        return dict(totals)


def draw_up(
    lines: Sequence[Line], by_order: Mapping[str, Sequence[End]], by_message: Mapping[str, Sequence[End]]
) -> Account:
    """Match lines and ends: those of valid orders by the order's id, those of dead letters by the message's."""
    account = Account(len(lines))
    for line in lines:
        ends = (*by_order.get(_order_id(line.text), ()), *by_message.get(line.message_id, ()))
        account.ends.update(ends)
        if not ends:
            account.missing.append(line)
        elif len(ends) > 1:
            account.twice.append(line)
    return account


async def ends_in_the_books() -> dict[str, list[End]]:
    """By order. Shipped is what was reserved, paid, invoiced and shipped: if any of it is missing, the order is."""
    engine = create_async_engine("sqlite+aiosqlite:///shop.db")
    async with AsyncSession(engine) as session:
        reservations = (await session.scalars(select(Reservation))).all()
        complete = set(
            await session.scalars(
                select(Shipment.order_id)
                .join(Payment, Payment.order_id == Shipment.order_id)
                .join(Invoice, Invoice.order_id == Shipment.order_id)
            )
        )
    await engine.dispose()
    ends: dict[str, list[End]] = {}
    for one in reservations:
        if one.state == "refused":
            ends.setdefault(one.order_id, []).append(End("cancelled", f"{one.sku}: out of stock"))
        if one.order_id in complete:
            ends.setdefault(one.order_id, []).append(End("shipped"))
    return ends


def ends_in_dead_letters(letters: Sequence[DeadLetter]) -> dict[str, list[End]]:
    """By message: the correlation id of all that follows from a message is the first one's id."""
    ends: dict[str, list[End]] = {}
    for letter in letters:
        if letter.group not in BYSTANDERS:
            end = End("dead", f"{letter.group}: {_kind(letter.reason)}")
            ends.setdefault(letter.message.correlation_id, []).append(end)
    return ends


def _kind(reason: str) -> str:
    """The reason without what is particular to one message: where in its text JSON broke off."""
    return "InvalidBody: Invalid JSON" if reason.startswith("InvalidBody: Invalid JSON") else reason


def _order_id(line: str) -> str:
    try:
        return msgspec.json.decode(line, type=_Named).id
    except msgspec.DecodeError:
        return ""


class _Named(msgspec.Struct):
    id: str = ""
