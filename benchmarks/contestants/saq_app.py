"""SAQ on Redis: `saq benchmarks.contestants.saq_app.settings`. A job stays active until it is done.

It runs 10 at once by default; more were no faster. Results are not kept (`ttl`): nobody asks for them. Its bulk call
waits for results, so 100 tasks send at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from saq import Queue

from benchmarks.contestants.orders import BODY, Order, Tally, broker, stamped
from benchmarks.contestants.publishing import Publisher

AT_ONCE = 100
TEXT = BODY.decode()
queue = Queue.from_url(broker())
tally = Tally()


async def handle(context: dict[str, Any], *, body: str) -> None:
    Order.model_validate_json(body)
    tally.count()


async def stamp(context: dict[str, Any], *, sent: float) -> None:
    stamped(sent)


settings = {"queue": queue, "functions": [handle, stamp]}


def one() -> Any:
    return queue.enqueue("handle", body=TEXT, ttl=-1)


async def many(count: int) -> None:
    for start in range(0, count, AT_ONCE):
        await asyncio.gather(*(one() for _ in range(min(AT_ONCE, count - start))))


@asynccontextmanager
async def publishing() -> AsyncIterator[Publisher]:
    await queue.connect()
    yield Publisher(one, many, lambda sent: queue.enqueue("stamp", sent=sent, ttl=-1))
    await queue.disconnect()
