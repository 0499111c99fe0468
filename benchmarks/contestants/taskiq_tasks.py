"""Taskiq with results: `taskiq worker benchmarks.contestants.taskiq_tasks:queue`.

As in `taskiq_app.py`, with the result backend of its Redis package. It polls for a result, each 0.2 s by default: here
each 2 ms, for the sake of its latency.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.contestants.numbers import POLL, check
from benchmarks.contestants.orders import Tally, broker
from benchmarks.contestants.publishing import Publisher, at_once

AT_ONCE = 100
results: RedisAsyncResultBackend[int] = RedisAsyncResultBackend(broker(), result_ex_time=3600)
queue = RedisStreamBroker(broker(), consumer_id="0", max_connection_pool_size=100).with_result_backend(results)
tally = Tally()


@queue.task
async def number(n: int) -> int:
    tally.count()
    return n


async def trip() -> None:
    found = await (await number.kiq(7)).wait_result(check_interval=POLL, timeout=10)
    check(found.return_value, 7)


@asynccontextmanager
async def publishing() -> AsyncIterator[Publisher]:
    await queue.startup()
    yield Publisher(lambda: number.kiq(7), at_once(lambda: number.kiq(7), AT_ONCE), trip=trip)
    await queue.shutdown()
