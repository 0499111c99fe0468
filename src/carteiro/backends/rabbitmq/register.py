"""Which groups there are: a list kept in the server, since AMQP tells nobody what queues it has.

The list is one message in a queue of its own. To read it is to get the message and give it back; to change it, to get
it, publish the new list, and ack the old one. Who has got it keeps others from it for that moment, so it is its own
lock; a process that dies with it gives it back with its connection. Where two messages meet, because two processes made
the first one at once or one died between publish and ack, the next one merges them.

Only operators' tools and the names of dead letter queues go by this list: who gets a message the exchanges decide.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from carteiro.backends.rabbitmq import methods
from carteiro.backends.rabbitmq.channel import Channel, Content, fail
from carteiro.backends.rabbitmq.mishaps import NOT_FOUND, Refused
from carteiro.backends.rabbitmq.natives import OWN_TOPICS, native_queue
from carteiro.backends.rabbitmq.topology import letters
from carteiro.backends.rabbitmq.wire import publish_method, write_properties
from carteiro.errors import BrokerUnavailable, ConfigurationError
from carteiro.message import NO_HEADERS, Message, Subscription, new_id
from carteiro.ports.clock import Clock
from carteiro.topics import matches

if TYPE_CHECKING:
    from carteiro.backends.rabbitmq.server import Server

_LOOKS: Final = 40
_BETWEEN_LOOKS: Final = 0.05
"""Seconds. Whoever has the list has it for a few milliseconds, or is frozen: then it is made anew by those who live."""
_BEFORE_TRIES: Final = (0.0, 0.1, 0.2, 0.4, 0.8)
"""Seconds: a server that is busy may refuse what it is given for a queue that is new."""
_FRESH: Final = 5.0
"""Seconds for which a list that was read is good enough for a dead letter queue's name."""


class Letters(msgspec.Struct, frozen=True, order=True):
    """A dead letter queue, and a subscription with letters in it."""

    queue: str
    topic: str
    group: str


class Listing(msgspec.Struct, frozen=True):
    """What the list says: subscriptions as (topic, group), and dead letter queues."""

    groups: frozenset[tuple[str, str]] = frozenset()
    letters: frozenset[Letters] = frozenset()

    def groups_of(self, topic: str) -> int:
        """How many durable groups get this topic; that of an object of RabbitMQ's own no pattern gets."""
        if topic.startswith(OWN_TOPICS):
            return len({group for own, group in self.groups if own == topic})
        return len({group for pattern, group in self.groups if matches(pattern, topic)})

    def check_shared(self) -> None:
        """Raises ConfigurationError where two groups have one RabbitQueue."""
        holders: dict[str, str] = {}
        for topic, group in sorted(self.groups):
            if native_queue(topic) is not None and holders.setdefault(topic, group) != group:
                raise ConfigurationError(
                    f"`{topic}` cannot be for the groups `{holders[topic]}` and `{group}`: a queue gives each message "
                    "to one of them. Give one a RabbitQueue of its own with the same bind=, or have both subscribe to "
                    f"the RabbitExchange; one that is gone for good: `carteiro topics remove-group {topic} --group …`"
                )


_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(Listing).decode


class Register:
    """The list, as one process sees it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._seen: Listing | None = None
        self._seen_at = 0.0

    async def read(self, *, fresh: bool = True) -> Listing:
        """`fresh=False`: one of the last five seconds will do."""
        now = self._server.clock.monotonic()
        if fresh or self._seen is None or now - self._seen_at > _FRESH:
            await self._change(lambda listing: listing)
        assert self._seen is not None
        return self._seen

    async def add(self, subscriptions: Sequence[Subscription]) -> None:
        groups = {(one.topic, one.group) for one in subscriptions}
        if groups and not (self._seen is not None and groups <= self._seen.groups):
            await self._change(lambda listing: _with_groups(listing, groups))

    async def remove(self, subscription: Subscription) -> None:
        gone = (subscription.topic, subscription.group)
        await self._change(lambda listing: msgspec.structs.replace(listing, groups=listing.groups - {gone}))

    async def note_letters(self, noted: Letters) -> None:
        if self._seen is None or noted not in self._seen.letters:
            await self._change(lambda listing: msgspec.structs.replace(listing, letters=listing.letters | {noted}))

    async def is_missing(self) -> bool:
        """Whether there is no list, or none any more."""
        channel = await (await self._server.link()).channel()
        try:
            await channel.call(methods.queue_declare(self._name, passive=True))
        except Refused as error:
            if error.code != NOT_FOUND:
                raise
            self._seen = None
            return True
        else:
            return False
        finally:
            await channel.close()

    async def make(self) -> None:
        """A list with nothing in it."""
        channel = await (await self._server.link()).channel()
        try:
            await channel.call(letters(self._name))
            await self._put(channel, Listing())
        finally:
            await channel.close()

    async def _change(self, changed: Callable[[Listing], Listing]) -> None:
        try:
            await self._try_to_change(changed)
        except Refused as error:
            if error.code != NOT_FOUND:
                raise
            await self._server.restore()  # someone has deleted the list
            await self._try_to_change(changed)

    async def _try_to_change(self, changed: Callable[[Listing], Listing]) -> None:
        channel = await (await self._server.link()).channel()
        try:
            listing, tags = await self._take(channel)
            new = changed(listing)
            if new != listing or len(tags) != 1:
                await self._put(channel, new)
                channel.write(b"".join(channel.ack(tag) for tag in tags))
            self._seen, self._seen_at = new, self._server.clock.monotonic()
        finally:
            await channel.close()  # what was only read goes back with it

    async def _take(self, channel: Channel) -> tuple[Listing, list[int]]:
        """All that there is in the queue, as one list; and what to ack once there is a newer one."""
        found: Content | None = await channel.call(methods.get(self._name))
        looks = 1
        while found is None and looks < _LOOKS:
            await self._server.clock.sleep(_BETWEEN_LOOKS)
            found = await channel.call(methods.get(self._name))
            looks += 1
        listing, tags = Listing(), []
        while found is not None:
            one = _decode(found[5])
            listing = Listing(listing.groups | one.groups, listing.letters | one.letters)
            tags.append(found[0])
            found = await channel.call(methods.get(self._name))
        return listing, tags

    async def _put(self, channel: Channel, listing: Listing) -> None:
        await put(channel, self._name, _encode(listing), self._server.clock)

    @property
    def _name(self) -> str:
        return self._server.names.register


async def put(channel: Channel, queue: str, body: bytes, clock: Clock) -> None:
    """Publish a note to a queue; returns when it is safe. The channel is for that alone, once."""
    channel.link.check_takes()
    await channel.call(methods.confirm_select())
    for wait in _BEFORE_TRIES:
        await clock.sleep(wait)
        message = Message(new_id(), queue, b"", None, NO_HEADERS, queue, clock.time())
        method = publish_method("", queue, mandatory=False)
        if await _is_taken(channel, channel.frames(method, write_properties(message), body)):
            return
    raise BrokerUnavailable(f"`{channel.link.name}` did not take a note in `{queue}`")


async def _is_taken(channel: Channel, frames: bytes) -> bool:
    if channel.error is not None:
        raise channel.error
    taken: asyncio.Future[bool] = channel.link.loop.create_future()
    channel.on_confirm = lambda tag, multiple, ok: taken.set_result(ok)
    channel.on_closed = lambda error: fail(taken, error)
    channel.write(frames)
    return bool(await channel.answered(taken))


def _with_groups(listing: Listing, groups: set[tuple[str, str]]) -> Listing:
    added = msgspec.structs.replace(listing, groups=listing.groups | groups)
    added.check_shared()
    return added
