"""Celery: `celery -A benchmarks.contestants.celery_app worker --pool threads`, on RabbitMQ `--pool solo`.

Acks come after the task (`acks_late`), and a lost worker's task is put back, as its guide says for what must not be
lost. For many short tasks the guide raises the prefetch multiplier; results, events and gossip, which nobody asks for,
are off. A `pydantic=True` task decodes the body. With its default pool one worker is two processes, of which one hands
tasks to the other: that was slower by a quarter or more. On RabbitMQ it has a quorum queue, and confirms for what it
publishes; there it was faster without a thread beside its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from celery import Celery, group

from benchmarks.contestants.orders import GROUP, ORDER, Order, Tally, broker, stamped
from benchmarks.contestants.publishing import Publisher, blocking

app = Celery(GROUP, broker=broker())
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=128,
    broker_connection_retry_on_startup=True,
)
if broker().startswith("amqp://"):
    app.conf.update(
        task_default_queue_type="quorum",
        broker_transport_options={"confirm_publish": True},
        worker_enable_remote_control=False,  # its queue is exclusive, and two workers of one host have one name
    )
tally = Tally()


@app.task(name="handle", pydantic=True)
def handle(order: Order) -> None:
    tally.count()


@app.task(name="stamp")
def stamp(sent: float) -> None:
    stamped(sent)


BODY = ORDER.model_dump(mode="json")


@asynccontextmanager
async def publishing() -> AsyncIterator[Publisher]:
    yield blocking(
        one=lambda: handle.delay(BODY),
        stamp=stamp.delay,
        many=lambda count: group(handle.s(BODY) for _ in range(count)).apply_async(),
    )
