"""The RabbitMQ of the bare loop: what one would write by hand on pika to get the same guarantees, and no more.

One quorum queue. The channel is the lease and the fence: what a worker held that is gone is delivered again, with
`x-delivery-count` one higher, and a tag of a channel that is closed acks nothing. What waits for a retry waits in a
queue whose TTL is its delay and which dead-letters back. It is published, and confirmed, before its delivery is acked,
like what is buried, so a whole batch lines up and one ack with `multiple` settles it. pika's asyncio adapter is the
fastest of the well-kept clients.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pika
from pika.adapters.asyncio_connection import AsyncioConnection

from benchmarks.contestants.bare import Held, Settled
from benchmarks.contestants.orders import BODY, STAMPS, TOPIC, broker
from benchmarks.contestants.publishing import Publisher
from carteiro.message import NO_HEADERS, Message

BATCH = 250
PREFETCH = 1_000
DEAD = "dead"
MADE = "attempts-made"
"""The header that says how many attempts were made before it was published anew."""
QUORUM = {"x-queue-type": "quorum"}


class Confirmation:
    """Waits until the server has taken so many messages."""

    def __init__(self, count: int) -> None:
        self._left = count
        self.done = asyncio.get_running_loop().create_future()

    def count(self) -> None:
        self._left -= 1
        if not self._left:
            self.done.set_result(None)


class BareRabbitMQ:
    """One connection with one channel, which consumes, acks and publishes."""

    def __init__(self, url: str, queue: str = TOPIC) -> None:
        self._url = url
        self._queue = queue
        self._channel: Any = None
        self._arrived: list[Any] = []
        self._arrival = asyncio.Event()
        self._numbers = itertools.count()
        self._tags = itertools.count(1)
        self._unconfirmed: dict[int, Confirmation] = {}

    async def create(self) -> None:
        loop = asyncio.get_running_loop()
        opened, channel = loop.create_future(), loop.create_future()
        connection = AsyncioConnection(
            pika.URLParameters(self._url),
            on_open_callback=opened.set_result,
            on_open_error_callback=lambda _, error: opened.set_exception(error),
        )
        await opened
        connection.channel(on_open_callback=channel.set_result)
        self._channel = await channel
        await self._told("confirm_delivery", ack_nack_callback=self._confirmed)
        await self._declare(self._queue)

    async def publish(self, body: bytes = BODY) -> None:
        await self._send(self._queue, [(body, self._properties())])

    async def publish_many(self, count: int) -> None:
        await self._send(self._queue, [(BODY, self._properties()) for _ in range(count)])

    async def turn(self, settled: Settled) -> Sequence[Any]:
        if self._channel is None:
            await self.create()
            await self._told("basic_qos", prefetch_count=PREFETCH)
            await self._told("basic_consume", queue=self._queue, on_message_callback=self._take)
        await self._settle(settled)
        if not self._arrived:
            self._arrival.clear()
            await self._arrival.wait()
        rows, self._arrived = self._arrived[:BATCH], self._arrived[BATCH:]
        return rows

    def held(self, row: Any) -> Held:
        headers = row[1].headers
        return row, 1 + headers.get(MADE, 0) + headers.get("x-delivery-count", 0) if headers else 1

    def message(self, row: Any) -> Message:
        _, properties, body = row
        id = properties.message_id
        return Message(id, self._queue, body, None, NO_HEADERS, id, properties.timestamp, self.held(row)[1])

    async def renew(self, held: Sequence[Held]) -> None:
        """The channel holds them as long as it lives."""

    async def _settle(self, settled: Settled) -> None:
        for delay, (row, attempt) in settled.retried:
            await self._declare(waiting := f"{self._queue}.{delay:g}s", delay)
            row[1].headers = {MADE: attempt}
            await self._send(waiting, [(row[2], row[1])])
        for reason, (row, _) in settled.dead:
            await self._declare(DEAD)
            row[1].headers = {"reason": reason}
            await self._send(DEAD, [(row[2], row[1])])
        held = [*settled.acked, *(held for _, held in settled.retried), *(held for _, held in settled.dead)]
        if held:
            self._channel.basic_ack(max(row[0] for row, _ in held), multiple=True)

    async def _declare(self, queue: str, delay: float | None = None) -> None:
        arguments: dict[str, Any] = dict(QUORUM)
        if delay is not None:
            arguments |= {
                "x-message-ttl": int(delay * 1000),
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": self._queue,
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            }
        await self._told("queue_declare", queue=queue, durable=True, arguments=arguments)

    async def _send(self, queue: str, messages: Sequence[tuple[bytes, Any]]) -> None:
        confirmation = Confirmation(len(messages))
        for body, properties in messages:
            self._unconfirmed[next(self._tags)] = confirmation
            self._channel.basic_publish("", queue, body, properties)
        await confirmation.done

    def _properties(self) -> Any:
        return pika.BasicProperties(
            delivery_mode=2, message_id=f"bare-{next(self._numbers):x}", timestamp=int(time.time())
        )

    async def _told(self, method: str, **arguments: Any) -> None:
        """Call a method of the channel, and return when the server has done it."""
        done = asyncio.get_running_loop().create_future()
        getattr(self._channel, method)(callback=lambda _: done.set_result(None), **arguments)
        await done

    def _take(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        self._arrived.append((method.delivery_tag, properties, body))
        self._arrival.set()

    def _confirmed(self, frame: Any) -> None:
        method = frame.method
        if not isinstance(method, pika.spec.Basic.Ack):
            raise RuntimeError(f"the server refused message {method.delivery_tag}")
        tags = [method.delivery_tag]
        if method.multiple:
            tags = list(itertools.takewhile(lambda tag: tag <= method.delivery_tag, self._unconfirmed))
        for tag in tags:
            self._unconfirmed.pop(tag).count()


@asynccontextmanager
async def publishing() -> AsyncIterator[Publisher]:
    bare, stamps = BareRabbitMQ(broker()), BareRabbitMQ(broker(), STAMPS)
    await bare.create()
    await stamps.create()
    yield Publisher(bare.publish, bare.publish_many, lambda sent: stamps.publish(repr(sent).encode()))
