"""streaQ, on Redis streams: `streaq run benchmarks.contestants.streaq_app:worker`. A task is acked when it is done.

It runs 16 at once and prefetches as many by default; more were no faster. Results are not kept (`ttl`): nobody asks for
them. In bulk it has `enqueue_many`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from streaq import Worker

from benchmarks.contestants.orders import BODY, Order, Tally, broker, stamped
from benchmarks.contestants.publishing import Publisher

worker = Worker(redis_url=broker())
tally = Tally()


@worker.task(ttl=0)
async def handle(body: bytes) -> None:
    Order.model_validate_json(body)
    tally.count()


@worker.task(ttl=0)
async def stamp(sent: float) -> None:
    stamped(sent)


async def one() -> None:
    await handle.enqueue(BODY)


async def stamp_one(sent: float) -> None:
    await stamp.enqueue(sent)


@asynccontextmanager
async def publishing() -> AsyncIterator[Publisher]:
    async with worker:
        yield Publisher(one, lambda count: worker.enqueue_many([handle.enqueue(BODY) for _ in range(count)]), stamp_one)
