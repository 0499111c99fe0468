"""Huey with results: `huey_consumer benchmarks.contestants.huey_tasks.huey`.

As in `huey_app.py`; results are kept by default, until someone reads them. It polls for one, ever more seldom: here at
most 2 ms apart, for the sake of its latency.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from huey import RedisHuey

from benchmarks.contestants.numbers import POLL, check
from benchmarks.contestants.orders import Tally, broker
from benchmarks.contestants.publishing import Publisher, blocking

huey = RedisHuey(url=broker())
tally = Tally()


@huey.task(retries=4)
def number(n: int) -> int:
    tally.count()
    return n


def trip() -> None:
    check(number(7).get(blocking=True, timeout=10, max_delay=POLL), 7)


@asynccontextmanager
async def publishing() -> AsyncIterator[Publisher]:
    yield blocking(lambda: number(7), trip=trip)
