"""FastStream on a Redis stream: `faststream run benchmarks.contestants.faststream_app:app`.

With a consumer group, so that messages are acked, and after the handler; `max_records` reads batches. Without the log
line for each message (`logger=None`), which costs more than half of its time. Its lists are no faster and lose what a
crash interrupts. In bulk it publishes to a stream through a pipeline; `publish_batch` is for lists.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

from faststream import AckPolicy, FastStream
from faststream.redis import RedisBroker, StreamSub

from benchmarks.contestants.orders import GROUP, ORDER, STAMPS, TOPIC, Order, Tally, broker, stamped
from benchmarks.contestants.publishing import Publisher

redis = RedisBroker(broker(), logger=None)
app = FastStream(redis, logger=None)
tally = Tally()


def stream(name: str) -> StreamSub:
    # `last_id` ">" is its default with a group; the group starts at the stream's beginning only where it is made first.
    return StreamSub(name, group=GROUP, consumer=uuid4().hex, max_records=100)


@redis.subscriber(stream=stream(TOPIC), ack_policy=AckPolicy.NACK_ON_ERROR)
async def handle(order: Order) -> None:
    tally.count()


@redis.subscriber(stream=stream(STAMPS), ack_policy=AckPolicy.NACK_ON_ERROR)
async def stamp(sent: float) -> None:
    stamped(sent)


async def in_pipeline(count: int) -> None:
    async with redis._connection.pipeline(transaction=False) as pipe:
        for _ in range(count):
            await redis.publish(ORDER, stream=TOPIC, pipeline=pipe)
        await pipe.execute()


@asynccontextmanager
async def publishing() -> AsyncIterator[Publisher]:
    async with redis:
        yield Publisher(
            one=lambda: redis.publish(ORDER, stream=TOPIC),
            many=in_pipeline,
            stamp=lambda sent: redis.publish(sent, stream=STAMPS),
        )
