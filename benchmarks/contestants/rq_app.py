"""RQ: `python -m benchmarks.contestants.rq_app`.

Its default worker forks for each job, which takes 20 ms here. Its notes on performance allow `SimpleWorker`, which does
not, where jobs are short. In bulk it has `enqueue_many`. Results are not kept: nobody asks for them.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis import Redis
from rq import Queue, SimpleWorker

from benchmarks.contestants.orders import BODY, Order, Tally, broker, stamped
from benchmarks.contestants.publishing import Publisher, blocking

HANDLE = "benchmarks.contestants.rq_app.handle"
STAMP = "benchmarks.contestants.rq_app.stamp"

queue = Queue(connection=Redis.from_url(broker()))
tally = Tally()


def handle(body: bytes) -> None:
    Order.model_validate_json(body)
    tally.count()


def stamp(sent: float) -> None:
    stamped(sent)


def many(count: int) -> None:
    queue.enqueue_many([Queue.prepare_data(HANDLE, (BODY,), result_ttl=0) for _ in range(count)])


@asynccontextmanager
async def publishing() -> AsyncIterator[Publisher]:
    yield blocking(
        one=lambda: queue.enqueue(HANDLE, BODY, result_ttl=0),
        stamp=lambda sent: queue.enqueue(STAMP, sent, result_ttl=0),
        many=many,
    )


if __name__ == "__main__":
    SimpleWorker([queue]).work(logging_level=logging.WARNING)
