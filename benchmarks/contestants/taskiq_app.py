"""Taskiq: `taskiq worker benchmarks.contestants.taskiq_app:queue`.

A message is acked once its result is saved, by default, and there is no result backend. It has no bulk call: 100 tasks
send at a time.

- On a Redis stream RedisStreamBroker is its broker with acks; prefetching more (`--max-prefetch`) was no faster.
- On RabbitMQ its queue is a durable quorum queue, and publishing is confirmed, both by default. Prefetching 500 was no
  faster than 100.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.contestants.orders import ORDER, Order, Tally, broker, stamped
from benchmarks.contestants.publishing import Publisher

AT_ONCE = 100

PREFETCH = 100


def connected(url: str) -> Any:
    # Only what is used is imported: it counts as the worker's memory.
    if url.startswith("amqp://"):
        from taskiq_aio_pika import AioPikaBroker

        return AioPikaBroker(url, qos=PREFETCH)
    from taskiq_redis import RedisStreamBroker

    # `consumer_id`: also what had come before its first worker started. `xread_count` is 100 by default.
    return RedisStreamBroker(url, consumer_id="0", max_connection_pool_size=100)


queue = connected(broker())
tally = Tally()


@queue.task
async def handle(order: Order) -> None:
    tally.count()


@queue.task
async def stamp(sent: float) -> None:
    stamped(sent)


async def many(count: int) -> None:
    for start in range(0, count, AT_ONCE):
        await asyncio.gather(*(handle.kiq(ORDER) for _ in range(min(AT_ONCE, count - start))))


@asynccontextmanager
async def publishing() -> AsyncIterator[Publisher]:
    await queue.startup()
    yield Publisher(lambda: handle.kiq(ORDER), many, stamp.kiq)
    await queue.shutdown()
