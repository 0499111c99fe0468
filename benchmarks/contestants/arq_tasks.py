"""ARQ with results: `arq benchmarks.contestants.arq_tasks.WorkerSettings`.

As in `arq_app.py`; results are kept for an hour, its default. It polls for a result, each 0.5 s by default: here each
2 ms, for the sake of its latency.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from arq import create_pool
from arq.connections import RedisSettings

from benchmarks.contestants.numbers import POLL, check
from benchmarks.contestants.orders import Tally, broker
from benchmarks.contestants.publishing import Publisher, at_once

AT_ONCE = 100
redis = RedisSettings.from_dsn(broker())
tally = Tally()


async def number(context: dict[Any, Any], n: int) -> int:
    tally.count()
    return n


class WorkerSettings:
    functions = (number,)
    redis_settings = redis
    poll_delay = 0.01
    log_results = False


@asynccontextmanager
async def publishing() -> AsyncIterator[Publisher]:
    async with await create_pool(redis) as pool:

        def one() -> Any:
            return pool.enqueue_job("number", 7)

        async def trip() -> None:
            job = await one()
            check(await job.result(timeout=10, poll_delay=POLL), 7)

        yield Publisher(one, at_once(one, AT_ONCE), trip=trip)
