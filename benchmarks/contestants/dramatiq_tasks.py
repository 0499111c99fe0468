"""Dramatiq with results: `dramatiq benchmarks.contestants.dramatiq_tasks --processes 1 --threads 16`.

As in `dramatiq_app.py`, with its Redis backend for results. Whoever waits for a result blocks on its key.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks.contestants.numbers import check
from benchmarks.contestants.orders import Tally, broker
from benchmarks.contestants.publishing import Publisher, blocking

queue = RedisBroker(url=broker())
queue.add_middleware(Results(backend=RedisBackend(url=broker())))
dramatiq.set_broker(queue)
tally = Tally()


@dramatiq.actor(store_results=True)
def number(n: int) -> int:
    tally.count()
    return n


def trip() -> None:
    check(number.send(7).get_result(block=True), 7)


@asynccontextmanager
async def publishing() -> AsyncIterator[Publisher]:
    yield blocking(
        one=lambda: number.send(7),
        many=lambda count: dramatiq.group(number.message(7) for _ in range(count)).run(),
        trip=trip,
    )
