"""How far a group has read a stream: a message in a queue, its *position*.

A stream is a log. It gives every consumer everything, and remembers for none of them where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from carteiro.backends.rabbitmq import methods
from carteiro.backends.rabbitmq.channel import Channel, Content
from carteiro.backends.rabbitmq.mishaps import NOT_FOUND, Refused
from carteiro.backends.rabbitmq.natives import RabbitQueue
from carteiro.backends.rabbitmq.register import put
from carteiro.backends.rabbitmq.wire import STREAM_OFFSET, read_properties
from carteiro.errors import BrokerError, BrokerUnavailable
from carteiro.message import Subscription

if TYPE_CHECKING:
    from carteiro.backends.rabbitmq.server import Server

AT_ONCE: Final = 500
"""Messages that are on their way from a stream."""
_FIRST: Final = 1.0
"""Seconds in which the last of a stream comes, if there is any."""

Position = str | int | float
"""A word of the server's, the offset of the next message, or seconds since the epoch."""

write_position = msgspec.json.encode
read_position = msgspec.json.Decoder(Position).decode


async def begin(server: Server, subscription: Subscription, stream: RabbitQueue) -> None:
    """Settle where a new group begins; for one that has begun, nothing changes."""
    name = server.names.position(subscription)
    (there,) = await server.run([methods.queue_declare(name, passive=True)])
    if there.message_count or there.consumer_count:
        return
    start = stream.start
    assert not isinstance(start, datetime)
    if start == "next":  # the server's `next` is from when one asks, and the first worker may come later
        start = await end_of(server, stream.name)
    channel = await (await server.link()).channel()
    try:
        await put(channel, name, write_position(start), server.clock)
    finally:
        await channel.close()


async def end_of(server: Server, stream: str) -> int:
    """The offset behind the last message. AMQP does not tell it: the last part of the stream is read for it."""
    reading = Reading(await (await server.link()).channel(), stream)
    end = 0
    try:
        await reading.begin(AT_ONCE, from_position("last"))
        while contents := await reading.all(_FIRST if not end else 0):
            end = offset_of(contents[-1]) + 1
            reading.ack(contents[-1])
    finally:
        await reading.channel.close()
    return end


def from_position(position: Position) -> Mapping[str, Any]:
    """What a consumer of a stream tells the server."""
    return {STREAM_OFFSET: datetime.fromtimestamp(position, UTC) if isinstance(position, float) else position}


def offset_of(content: Content) -> int:
    return int(read_properties(content[4]).own[STREAM_OFFSET])


class Reading:
    """What comes from one queue, on a channel of its own."""

    def __init__(self, channel: Channel, queue: str) -> None:
        self.channel = channel
        self._queue = queue
        self._prefetch = 0
        self._news = asyncio.Event()
        self.is_gone = False
        """Whether the queue was deleted."""
        self._error: BrokerError | None = None
        channel.on_arrival = self._news.set
        channel.on_cancel = self._cancelled
        channel.on_closed = self._closed

    async def begin(self, prefetch: int, arguments: Mapping[str, Any]) -> None:
        """`prefetch`: how many may be unacked; 0 is no limit."""
        self._prefetch = prefetch
        await self.channel.call(methods.qos(prefetch))
        try:
            await self.channel.call(methods.consume(self._queue, "1", arguments=arguments))
        except Refused as error:
            self.is_gone = error.code == NOT_FOUND
            raise

    async def next(self, seconds: float | None = None) -> list[Content]:
        """All that has come; waits for at least one, for so long. Raises BrokerError when no more will."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._something()
        contents, self.channel.inbox = self.channel.inbox, []
        return contents

    async def all(self, seconds: float | None = None) -> list[Content]:
        """As `next`, with what is on its way."""
        contents = await self.next(seconds)
        if contents:
            await self.channel.call(methods.qos(self._prefetch))
            contents += await self.next(0)
        return contents

    async def _something(self) -> None:
        while not self.channel.inbox:
            self._news.clear()
            if self._error is not None:
                raise self._error
            await self._news.wait()

    def ack(self, last: Content) -> None:
        """All that has come up to this one."""
        self.channel.write(self.channel.ack(last[0], multiple=True))

    def ack_before(self, kept: Content) -> None:
        """All that has come, but this one."""
        if kept[0] > 1:  # an ack of 0 is one of all
            self.channel.write(self.channel.ack(kept[0] - 1, multiple=True))

    def _cancelled(self) -> None:
        self.is_gone = True
        self._closed(BrokerUnavailable(f"the queue `{self._queue}` was deleted"))

    def _closed(self, error: BrokerError) -> None:
        self._error = error
        self._news.set()
