"""A listener of the demo's own: it hears of the end of each order, and says when all have ended."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Annotated

from carteiro import Carteiro, Message, Path
from examples.shop.audit import BYSTANDERS

SENT = {"shipped", "invoiced"}
"""Both are wanted, in whatever order they come."""


class Ends:
    """What was heard, by the id of the message that an order was placed with: all that follows from it carries that id
    as its correlation id."""

    def __init__(self, broker: str) -> None:
        self.app = Carteiro("audit", broker=broker)
        self.ended: set[str] = set()
        self.news = asyncio.Event()
        self._sent: defaultdict[str, set[str]] = defaultdict(set)
        for stage in (*SENT, "cancelled", "unpaid"):
            self.app.subscriber(f"orders.{stage}")(self._hear)
        self.app.subscriber("dlq_orders.{event}.{group}")(self._hear_dead)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        async with self.app.lifespan():
            yield

    def missing(self, orders: Collection[str]) -> int:
        return len(orders) - len(self.ended.intersection(orders))

    async def _hear(self, message: Message) -> None:
        order, stage = message.correlation_id, message.topic.removeprefix("orders.")
        if stage in SENT:
            self._sent[order].add(stage)
            if self._sent[order] != SENT:
                return
        self._end(order)

    async def _hear_dead(self, message: Message, group: Annotated[str, Path()]) -> None:
        if group not in (*BYSTANDERS, "payment"):  # a payment's end is `orders.unpaid`, when its units are back
            self._end(message.correlation_id)

    def _end(self, order: str) -> None:
        self.ended.add(order)
        self.news.set()
