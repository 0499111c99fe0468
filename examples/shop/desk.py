"""The desk: keeps the order book, from which customers are told how their orders stand. It decides nothing."""

from __future__ import annotations

from sqlalchemy.dialects.sqlite import insert

from carteiro import Batch, Message, Router
from examples.shop.db import Entry, Session
from examples.shop.events import Order

router = Router(prefix="orders.")

STAGES = ("placed", "reserved", "paid", "invoiced", "shipped", "cancelled", "unpaid")
"""From the first to the last. Events may arrive in any order: an order stands where the latest of its stages is."""


class Event(Order, frozen=True, extra="allow"):
    """Any event of an order; what it says beyond the order is in `model_extra`."""


@router.subscriber("*", group="desk", batch=Batch(size=200, wait=0.05))
async def record(events: list[Event], messages: list[Message], session: Session) -> None:
    """One transaction for many events: the busiest listener is the cheapest."""
    entries = [_entry(event, message) for event, message in zip(events, messages, strict=True)]
    await session.execute(insert(Entry).on_conflict_do_nothing(), entries)


def _entry(event: Event, message: Message) -> dict[str, object]:
    stage = message.topic.removeprefix("orders.")
    return {
        "order_id": event.id,
        "stage": stage,
        "rank": STAGES.index(stage) if stage in STAGES else -1,
        "at": message.published,
        "detail": "; ".join(map(str, (event.model_extra or {}).values())),
    }
