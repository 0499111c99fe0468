"""Dramatiq on Redis: `dramatiq benchmarks.contestants.dramatiq_app --processes 1 --threads 16`.

It acks after the actor, and retries, by default. It prefetches two messages a thread: with 16 threads instead of 8 it
is a third faster, with more no further. In bulk a `group` enqueues one after another.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks.contestants.orders import BODY, Order, Tally, broker, stamped
from benchmarks.contestants.publishing import Publisher, blocking

dramatiq.set_broker(RedisBroker(url=broker()))
tally = Tally()


@dramatiq.actor
def handle(body: str) -> None:
    Order.model_validate_json(body)
    tally.count()


@dramatiq.actor
def stamp(sent: float) -> None:
    stamped(sent)


TEXT = BODY.decode()


@asynccontextmanager
async def publishing() -> AsyncIterator[Publisher]:
    yield blocking(
        one=lambda: handle.send(TEXT),
        stamp=stamp.send,
        many=lambda count: dramatiq.group(handle.message(TEXT) for _ in range(count)).run(),
    )
