"""A stream for groups: copied into a queue of each group's own, as far as that has room.

A stream knows of no groups, attempts or retries. So each group of its subscribers has a queue beside it, like the one
of a topic, and one worker of the group at a time copies from the stream into that. It copies as much as the others
handle, and waits where nobody takes anything.

The queue of the group's position has a single active consumer: who has been given the position is the one who copies,
and a worker that dies gives it back with its connection. The order of steps: the copies are confirmed; a new position
is; the old one is acked. A crash between copies a part again, with the same ids: a duplicate, never a loss.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from carteiro.backends.rabbitmq import methods
from carteiro.backends.rabbitmq.channel import Channel, Content
from carteiro.backends.rabbitmq.link import Link
from carteiro.backends.rabbitmq.natives import OFFSET, RabbitQueue
from carteiro.backends.rabbitmq.positions import (
    AT_ONCE,
    Position,
    Reading,
    end_of,
    from_position,
    offset_of,
    read_position,
    write_position,
)
from carteiro.backends.rabbitmq.publishing import Parcel, Publisher
from carteiro.backends.rabbitmq.server import Server
from carteiro.backends.rabbitmq.wire import read_properties, to_message, write_properties
from carteiro.errors import BrokerUnavailable
from carteiro.message import NO_HEADERS, Message, Subscription, new_id

log = logging.getLogger("carteiro.worker")

_AHEAD: Final = 2000
"""Messages that wait in the group's queue before copying does."""
_LOOK: Final = 0.1
"""Seconds between two looks whether there is room again."""
_NOTED_AGAIN: Final = 300.0
"""Seconds after which the position of a silent stream is: before RabbitMQ 3.12 no message may be held for 30 min."""


class Copier:
    """One process's part in it, for one subscription."""

    def __init__(
        self,
        server: Server,
        publisher: Publisher,
        subscription: Subscription,
        stream: RabbitQueue,
        on_end: Callable[[], None],
    ) -> None:
        self._server = server
        self._publisher = publisher
        self._topic = subscription.topic
        self._stream = stream.name
        self._queue = server.names.queue(subscription)
        self._position = server.names.position(subscription)
        self._on_end = on_end
        self._under_way = asyncio.Lock()
        self._link: Link | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_another = False
        """Whether the stream was seen to be deleted, and nothing of what may be there now has been copied."""

    @property
    def runs(self) -> bool:
        return self._task is not None and not self._task.done()

    def start(self, link: Link) -> None:
        """Raises what it has ended with, if it has and the link lives: then the next call starts it."""
        if self.runs:
            return
        ended, self._task = self._task, None
        if ended is not None and not ended.cancelled() and not (self._link is not None and self._link.lost):
            ended.result()
        self._link = link
        self._task = asyncio.create_task(self._run(link), name=f"carteiro copies {self._stream}")
        self._task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """What is under way is noted before."""
        if self._task is not None:
            async with self._under_way:
                self._task.cancel()
            await asyncio.wait([self._task])

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # whoever fetches next is told
            self._on_end()

    async def _run(self, link: Link) -> None:
        position = Reading(await link.channel(), self._position)
        stream = Reading(await link.channel(), self._stream)
        try:
            await position.begin(0, NO_HEADERS)
            noted = await position.all()
            position.ack_before(noted[-1])  # a crash may have left two
            place = await self._checked(read_position(noted[-1][5]))
            await stream.begin(AT_ONCE, from_position(place))
            while True:
                contents = await stream.next(_NOTED_AGAIN)
                if contents:
                    await self._wait_for_room(position.channel)
                async with self._under_way:
                    if contents:
                        await self._send([self._copy(content) for content in contents])
                        place = offset_of(contents[-1]) + 1
                        self._is_another = False
                    await self._send([self._note(place)])
                    position.ack_before((await position.next())[-1])
                    if contents:
                        stream.ack(contents[-1])
        finally:
            self._is_another = self._is_another or stream.is_gone
            position.channel.retire()
            stream.channel.retire()

    async def _checked(self, position: Position) -> Position:
        """Of a stream that was deleted and is there again, which counts from 0, the first."""
        if not isinstance(position, int) or not position:
            return position
        if not self._is_another and await end_of(self._server, self._stream) >= position:
            return position
        log.warning("the stream `%s` was deleted, and is read from its first message", self._stream)
        return "first"

    async def _wait_for_room(self, channel: Channel) -> None:
        look = methods.queue_declare(self._queue, passive=True)
        while (await channel.call(look)).message_count > _AHEAD:
            await self._server.clock.sleep(_LOOK)

    def _copy(self, content: Content) -> Parcel:
        offset, received, now = offset_of(content), read_properties(content[4]), self._server.clock.time()
        if received.id is None:
            received = msgspec.structs.replace(received, id=f"{self._stream}:{offset}")
        message = msgspec.structs.replace(
            to_message(received, self._topic, content[5], now),
            topic=self._topic,
            headers={**received.headers, OFFSET: str(offset)},
        )
        return Parcel("", self._queue, message.id, write_properties(message, topic=True), message.body)

    def _note(self, place: Position) -> Parcel:
        id, now = new_id(), self._server.clock.time()
        properties = write_properties(Message(id, self._position, b"", None, NO_HEADERS, id, now))
        return Parcel("", self._position, id, properties, write_position(place))

    async def _send(self, parcels: Sequence[Parcel]) -> None:
        if await self._publisher.send(parcels):
            raise BrokerUnavailable(f"`{parcels[0].routing_key}` was deleted")
