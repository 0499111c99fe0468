"""Taskiq on a Redis stream: `taskiq worker benchmarks.contestants.taskiq_app:redis`.

RedisStreamBroker is its broker with acks; a message is acked once its result is saved, by default, and there is no
result backend. Prefetching more (`--max-prefetch`) was no faster. It has no bulk call: 100 tasks send at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from taskiq_redis import RedisStreamBroker

from benchmarks.contestants.orders import ORDER, Order, Tally, broker, stamped
from benchmarks.contestants.publishing import Publisher

AT_ONCE = 100

# `consumer_id`: also what had come before its first worker started. `xread_count` is 100 by default.
redis = RedisStreamBroker(broker(), consumer_id="0", max_connection_pool_size=100)
tally = Tally()


@redis.task
async def handle(order: Order) -> None:
    tally.count()


@redis.task
async def stamp(sent: float) -> None:
    stamped(sent)


async def many(count: int) -> None:
    for start in range(0, count, AT_ONCE):
        await asyncio.gather(*(handle.kiq(ORDER) for _ in range(min(AT_ONCE, count - start))))


@asynccontextmanager
async def publishing() -> AsyncIterator[Publisher]:
    await redis.startup()
    yield Publisher(lambda: handle.kiq(ORDER), many, stamp.kiq)
    await redis.shutdown()
