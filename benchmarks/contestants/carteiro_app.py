"""Carteiro as a user runs it: `carteiro run benchmarks.contestants.carteiro_app:app`, the broker in CARTEIRO_BROKER.

Everything that it does by default is on: leases, five attempts, dead letters.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from benchmarks.contestants.orders import GROUP, ORDER, TOPIC, Delays, Order, Tally
from carteiro import Carteiro

STAMPS = "stamps"


def build(broker: str | None = None) -> Carteiro:
    app = Carteiro(GROUP, broker)
    tally = Tally(every=5000)
    delays = Delays(int(os.environ.get("BENCH_COUNT", "0")))

    @app.subscriber(TOPIC)
    async def handle(order: Order) -> None:
        tally.count()

    @app.subscriber(STAMPS)
    async def stamp(sent: float) -> None:
        delays.note(sent)

    return app


async def fill(broker: str, messages: int, *, delay: float | None = None) -> None:
    """Leave so many orders waiting, `delay` in seconds before they may be handled."""
    async with build(broker) as app:
        for some in _batches(messages, 5000):
            await app.publish_many(TOPIC, [ORDER] * some, delay=delay)


def _batches(total: int, size: int) -> Iterable[int]:
    while total > 0:
        yield min(total, size)
        total -= size


app = build()
