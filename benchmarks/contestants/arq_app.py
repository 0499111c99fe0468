"""ARQ: `arq benchmarks.contestants.arq_app.WorkerSettings`. A job stays queued until it is done.

It looks for jobs each 0.5 s by default: here each 10 ms (`poll_delay`), for the sake of its latency. It runs 10 at once
by default; 100 were no faster. Results are not kept: nobody asks for them. It has no bulk call: 100 tasks send at a
time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from arq import create_pool
from arq.connections import RedisSettings

from benchmarks.contestants.orders import BODY, Order, Tally, broker, stamped
from benchmarks.contestants.publishing import Publisher

AT_ONCE = 100
redis = RedisSettings.from_dsn(broker())
tally = Tally()


async def handle(context: dict[Any, Any], body: bytes) -> None:
    Order.model_validate_json(body)
    tally.count()


async def stamp(context: dict[Any, Any], sent: float) -> None:
    stamped(sent)


class WorkerSettings:
    functions = (handle, stamp)
    redis_settings = redis
    poll_delay = 0.01
    keep_result = 0
    log_results = False


@asynccontextmanager
async def publishing() -> AsyncIterator[Publisher]:
    async with await create_pool(redis) as pool:

        async def many(count: int) -> None:
            for start in range(0, count, AT_ONCE):
                await asyncio.gather(*(pool.enqueue_job("handle", BODY) for _ in range(min(AT_ONCE, count - start))))

        yield Publisher(lambda: pool.enqueue_job("handle", BODY), many, lambda sent: pool.enqueue_job("stamp", sent))
