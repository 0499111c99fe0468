"""Publishing, confirmed: a message is out once the server says that its queues have it.

All of a process is published on one channel, so that what one call publishes stays in order. The server confirms in
runs, and sends back what no queue gets before it confirms that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

import msgspec

from carteiro.backends.rabbitmq import methods
from carteiro.backends.rabbitmq.channel import Channel, Content
from carteiro.backends.rabbitmq.link import Link
from carteiro.backends.rabbitmq.mishaps import NOT_FOUND, Refused
from carteiro.backends.rabbitmq.server import Server
from carteiro.backends.rabbitmq.wire import publish_method, read_properties
from carteiro.errors import BrokerError, BrokerUnavailable

log = logging.getLogger("carteiro.publisher")

_WRITE: Final = 256 * 1024
"""Bytes that are written in one go."""


class Parcel(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What is published, ready for the wire. `mandatory`: to be told where no queue gets it."""

    exchange: str
    routing_key: str
    id: str
    properties: bytes
    body: bytes
    mandatory: bool = True


class Unconfirmed(BrokerUnavailable):
    """The connection was lost, or the server did not take all; `left` has the indexes of what may not be out."""

    def __init__(self, text: str, left: frozenset[int]) -> None:
        super().__init__(text)
        self.left = left


class _Batch:
    """What one call sends. `first` is the number of its first message on the channel."""

    def __init__(self, parcels: Sequence[Parcel], first: int, done: asyncio.Future[None]) -> None:
        self.parcels = parcels
        self.first = first
        self.done = done
        self.unconfirmed = len(parcels)
        self.refused: set[int] = set()
        self.returned: set[int] = set()
        self._by_name: dict[tuple[str, str], list[int]] | None = None

    def confirm(self, number: int, taken: bool) -> None:
        self.unconfirmed -= 1
        if not taken:
            self.refused.add(number - self.first)
        if not self.unconfirmed and not self.done.done():
            self.done.set_result(None)

    def give_back(self, routing_key: str, id: str | None) -> bool:
        """The server has returned it; False if it is none of these."""
        if self._by_name is None:
            self._by_name = {}
            for index in reversed(range(len(self.parcels))):
                parcel = self.parcels[index]
                self._by_name.setdefault((parcel.routing_key, parcel.id), []).append(index)
        indexes = self._by_name.get((routing_key, id or ""))
        if not indexes:
            return False
        self.returned.add(indexes.pop())
        return True


class _Line:
    """A channel on which what is published is confirmed, as long as that lasts."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._numbers = 0
        self._low = 1
        self._under_way: dict[int, _Batch] = {}  # by number, what is not confirmed yet
        channel.on_confirm = self._confirmed
        channel.on_return = self._returned
        channel.on_closed = self._closed

    def write(self, parcels: Sequence[Parcel]) -> _Batch:
        channel = self.channel
        batch = _Batch(parcels, self._numbers + 1, channel.link.loop.create_future())
        self._numbers += len(parcels)
        self._under_way.update(dict.fromkeys(range(batch.first, self._numbers + 1), batch))
        pieces: list[bytes] = []
        size = 0
        for parcel in parcels:
            method = publish_method(parcel.exchange, parcel.routing_key, mandatory=parcel.mandatory)
            piece = channel.frames(method, parcel.properties, parcel.body)
            pieces.append(piece)
            size += len(piece)
            if size > _WRITE:
                channel.write(b"".join(pieces))
                pieces, size = [], 0
        if pieces:
            channel.write(b"".join(pieces))
        return batch

    def left(self, batch: _Batch) -> frozenset[int]:
        """What of it may be in no queue: from now on its confirms would tell nobody."""
        mine = [number for number, one in self._under_way.items() if one is batch]
        for number in mine:
            del self._under_way[number]
        return frozenset(batch.refused.union(batch.returned, (number - batch.first for number in mine)))

    def _confirmed(self, number: int, multiple: bool, taken: bool) -> None:
        for one in range(self._low if multiple else number, number + 1):
            batch = self._under_way.pop(one, None)
            if batch is not None:
                batch.confirm(one, taken)
        if multiple:
            self._low = number + 1

    def _returned(self, content: Content) -> None:
        routing_key, id = content[3].decode(), read_properties(content[4]).id
        for batch in dict.fromkeys(self._under_way.values()):
            if batch.give_back(routing_key, id):
                return

    def _closed(self, error: BrokerError) -> None:
        for batch in dict.fromkeys(self._under_way.values()):
            if not batch.done.done():
                batch.done.set_exception(error)
                batch.done.exception()


class Publisher:
    """Sends parcels for a process."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._line: _Line | None = None
        self._opening = asyncio.Lock()

    async def send(self, parcels: Sequence[Parcel]) -> frozenset[int]:
        """The indexes of those mandatory ones that no queue got; all others are safe.

        Raises BrokerUnavailable if none is, Unconfirmed if some are, and Refused for what the server does not allow.
        """
        returned = await self._try(parcels)
        if not returned:
            return returned
        astray = await self._astray(parcels, returned)
        if not astray:
            return returned
        try:
            await self._server.restore()
            again = await self._try([parcels[index] for index in astray])
        except BrokerUnavailable as error:
            left = error.left if isinstance(error, Unconfirmed) else range(len(astray))
            raise Unconfirmed(str(error), frozenset(astray[place] for place in left)) from None
        return returned.difference(astray).union(astray[place] for place in again)

    async def _astray(self, parcels: Sequence[Parcel], returned: frozenset[int]) -> list[int]:
        """Those that no queue got though there is one for them: someone has deleted what leads there."""
        places = {(parcels[index].exchange, parcels[index].routing_key) for index in returned}
        known = {place for place in places if await self._server.is_known(*place)}
        return sorted(one for one in returned if (parcels[one].exchange, parcels[one].routing_key) in known)

    async def _try(self, parcels: Sequence[Parcel]) -> frozenset[int]:
        line = await self._open()
        link = line.channel.link
        link.check_takes()
        batch = line.write(parcels)
        try:
            async with asyncio.timeout(self._server.address.timeout):
                await link.writable.wait()
                await batch.done
        except TimeoutError:
            short = f": it is short of something ({link.blocked})" if link.blocked else ""
            text = f"`{link.name}` did not confirm within {self._server.address.timeout:g} s{short}"
            raise Unconfirmed(text, line.left(batch)) from None
        except BrokerError as error:
            if isinstance(error, Refused):
                if error.code != NOT_FOUND:
                    raise
                await self._server.restore()  # an exchange is gone, and with it all bindings
            raise Unconfirmed(str(error), line.left(batch)) from None
        if batch.refused:
            raise Unconfirmed(
                f"`{link.name}` did not take {len(batch.refused)} of {len(parcels)} messages: a queue is full (its "
                "x-overflow is reject-publish), or has lost the majority of its nodes",
                line.left(batch),
            )
        return frozenset(batch.returned)

    async def _open(self) -> _Line:
        if self._line is not None and self._line.channel.error is None:
            return self._line
        async with self._opening:
            if self._line is None or self._line.channel.error is not None:
                link = await self._server.link()
                channel = await link.channel()
                await channel.call(methods.confirm_select())
                if channel.error is not None:  # it has ended since, and would tell no line of that
                    raise channel.error
                link.on_blocked = lambda: _tell_of_block(link)
                self._line = _Line(channel)
            return self._line


def _tell_of_block(link: Link) -> None:
    if link.blocked is not None:
        log.warning("`%s` takes no more messages for now: %s", link.name, link.blocked)
    else:
        log.warning("`%s` takes messages again", link.name)
