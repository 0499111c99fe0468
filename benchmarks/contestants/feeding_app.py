"""Handles and publishes at one pace, so that the backlog stays as long as it was."""

from __future__ import annotations

import asyncio

from benchmarks.contestants.orders import GROUP, ORDER, TOPIC, Order, Tally
from carteiro import Carteiro

BATCH = 500

app = Carteiro(GROUP)
tally = Tally()
feeding: set[asyncio.Task[list[str]]] = set()


@app.subscriber(TOPIC)
async def handle(order: Order) -> None:
    tally.count()
    if tally.handled % BATCH == 0:
        task = asyncio.create_task(app.publish_many(TOPIC, [ORDER] * BATCH))
        feeding.add(task)
        task.add_done_callback(feeding.discard)
