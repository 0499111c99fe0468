"""Dramatiq: `dramatiq benchmarks.contestants.dramatiq_app --processes 1 --threads 16`.

It acks after the actor, and retries, by default. It prefetches two messages a thread. In bulk a `group` enqueues one
after another.

- On Redis it is a third faster with 16 threads than with 8, with more no further.
- On RabbitMQ it was fastest with 4 threads and a prefetch of 256 (`dramatiq_queue_prefetch`), by a quarter or more. It
  declares durable queues of no kind, so they are of the kind that the virtual host has by default, and it waits for
  confirms when it is told to (`confirm_delivery`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import dramatiq

from benchmarks.contestants.orders import BODY, Order, Tally, broker, stamped
from benchmarks.contestants.publishing import Publisher, blocking


def connected(url: str) -> dramatiq.Broker:
    # Only what is used is imported: it counts as the worker's memory.
    if url.startswith("amqp://"):
        from dramatiq.brokers.rabbitmq import RabbitmqBroker

        return RabbitmqBroker(url=url, confirm_delivery=True)
    from dramatiq.brokers.redis import RedisBroker

    return RedisBroker(url=url)


dramatiq.set_broker(connected(broker()))
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
