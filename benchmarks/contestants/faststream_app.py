"""FastStream on a Redis stream: `faststream run benchmarks.contestants.faststream_app:app`.

With a consumer group, so that messages are acked, and after the handler; `max_records` reads batches (1,000, or
`max_workers` as well, were no faster). Without the log line for each message (`logger=None`), which takes more time
than all the rest. Its lists lose what a crash interrupts. In bulk it publishes to a stream through a pipeline:
`publish_batch` is for lists.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

from faststream import AckPolicy, FastStream
from faststream.redis import RedisBroker, StreamSub
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from benchmarks.contestants.orders import GROUP, ORDER, STAMPS, TOPIC, Order, Tally, broker, stamped
from benchmarks.contestants.publishing import Publisher

redis = RedisBroker(broker(), logger=None)
app = FastStream(redis, logger=None)
tally = Tally()


def stream(name: str) -> StreamSub:
    return StreamSub(name, group=GROUP, consumer=uuid4().hex, max_records=100)


@redis.subscriber(stream=stream(TOPIC), ack_policy=AckPolicy.NACK_ON_ERROR)
async def handle(order: Order) -> None:
    tally.count()


@redis.subscriber(stream=stream(STAMPS), ack_policy=AckPolicy.NACK_ON_ERROR)
async def stamp(sent: float) -> None:
    stamped(sent)


@asynccontextmanager
async def publishing() -> AsyncIterator[Publisher]:
    async with Redis.from_url(broker()) as client, redis:
        # Its worker makes a group that starts with what comes later: what waits for it needs the group to be there.
        for topic in (TOPIC, STAMPS):
            with contextlib.suppress(ResponseError):
                await client.xgroup_create(topic, GROUP, id="0", mkstream=True)

        async def in_pipeline(count: int) -> None:
            async with client.pipeline(transaction=False) as pipe:
                for _ in range(count):
                    await redis.publish(ORDER, stream=TOPIC, pipeline=pipe)
                await pipe.execute()

        yield Publisher(
            one=lambda: redis.publish(ORDER, stream=TOPIC),
            many=in_pipeline,
            stamp=lambda sent: redis.publish(sent, stream=STAMPS),
        )
