"""FastStream on RabbitMQ: `faststream run benchmarks.contestants.faststream_rabbit_app:app`.

Durable quorum queues, publisher confirms (its default), and acks after the handler. It handles as many at once as it
prefetches; 500 were no faster than 100. Without the log line for each message (`logger=None`), which takes more time
than all the rest. It has no bulk call: 100 tasks publish at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue

from benchmarks.contestants.orders import ORDER, STAMPS, TOPIC, Order, Tally, broker, stamped
from benchmarks.contestants.publishing import Publisher

AT_ONCE = 100
PREFETCH = 100

rabbit = RabbitBroker(broker(), logger=None, default_channel=Channel(prefetch_count=PREFETCH))
app = FastStream(rabbit, logger=None)
tally = Tally()


def queue(name: str) -> RabbitQueue:
    return RabbitQueue(name, queue_type=QueueType.QUORUM, durable=True)


orders, stamps = queue(TOPIC), queue(STAMPS)


@rabbit.subscriber(orders, ack_policy=AckPolicy.NACK_ON_ERROR)
async def handle(order: Order) -> None:
    tally.count()


@rabbit.subscriber(stamps, ack_policy=AckPolicy.NACK_ON_ERROR)
async def stamp(sent: float) -> None:
    stamped(sent)


async def one() -> None:
    await rabbit.publish(ORDER, orders, persist=True)


async def many(count: int) -> None:
    for start in range(0, count, AT_ONCE):
        await asyncio.gather(*(one() for _ in range(min(AT_ONCE, count - start))))


@asynccontextmanager
async def publishing() -> AsyncIterator[Publisher]:
    async with rabbit:
        for one_of_them in (orders, stamps):  # what waits for its worker needs the queue to be there
            await rabbit.declare_queue(one_of_them)
        yield Publisher(one, many, lambda sent: rabbit.publish(sent, stamps, persist=True))
