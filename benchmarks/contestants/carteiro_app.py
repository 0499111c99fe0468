"""Carteiro as a user runs it: `carteiro run benchmarks.contestants.carteiro_app:app`, the broker in CARTEIRO_BROKER.

Everything that it does by default is on: leases, five attempts, dead letters.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.contestants.orders import GROUP, ORDER, STAMPS, TOPIC, Order, Tally, stamped
from benchmarks.contestants.publishing import BULK, Publisher
from carteiro import Carteiro


def build(broker: str | None = None) -> Carteiro:
    app = Carteiro(GROUP, broker)
    tally = Tally()

    @app.subscriber(TOPIC)
    async def handle(order: Order) -> None:
        tally.count()

    @app.subscriber(STAMPS)
    async def stamp(sent: float) -> None:
        stamped(sent)

    return app


app = build()


@asynccontextmanager
async def publishing() -> AsyncIterator[Publisher]:
    async with app:
        yield Publisher(
            one=lambda: app.publish(TOPIC, ORDER),
            many=lambda count: app.publish_many(TOPIC, [ORDER] * count),
            stamp=lambda sent: app.publish(STAMPS, sent),
        )


async def fill(broker: str, messages: int, *, delay: float | None = None) -> None:
    """Leave so many orders waiting, `delay` in seconds before they may be handled."""
    async with build(broker) as app:
        for start in range(0, messages, BULK):
            await app.publish_many(TOPIC, [ORDER] * min(BULK, messages - start), delay=delay)
