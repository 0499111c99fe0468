"""What the broker, its consumers and the inspector share: the connection to publish on, and what is declared.

That connection is made when it is needed and made again after it was lost. Consumers have one each, of their own: a
server that is short of memory stops reading from connections that publish, and acks must get through all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Final

from carteiro.backends.rabbitmq import delays, positions, topology
from carteiro.backends.rabbitmq.address import Address
from carteiro.backends.rabbitmq.link import Link
from carteiro.backends.rabbitmq.mishaps import Refused
from carteiro.backends.rabbitmq.names import Names
from carteiro.backends.rabbitmq.natives import OWN_TOPICS, RabbitExchange, RabbitQueue
from carteiro.backends.rabbitmq.register import Letters, Register
from carteiro.errors import NotConnected
from carteiro.message import Outgoing, Subscription
from carteiro.ports.clock import Clock

_TELLS_ALL: Final = (4,)
_NOTICED: Final = 0.3
"""Seconds after which a server before that has told all consumers of a queue that it was deleted."""


class Server:
    """One RabbitMQ, under one prefix."""

    def __init__(self, address: Address, clock: Clock) -> None:
        self.address = address
        self.clock = clock
        self.names = Names(address.prefix)
        self.register = Register(self)
        self._link: Link | None = None
        self._opening: asyncio.Task[Link] | None = None
        self._is_open = False
        self._declared: dict[Subscription, Subscription] = {}
        self._letters: set[Letters] = set()
        self._unlisted: set[Letters] | None = None
        """While a new list of the groups is not whole: what this process knows of letters, and its groups with them."""
        self._targets: set[tuple[RabbitExchange | RabbitQueue, bool]] = set()

    async def open(self) -> None:
        self._is_open = True
        await self.link()
        await self._prepare()

    async def close(self) -> None:
        self._is_open = False
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        if self._link is not None:
            await self._link.close()
            self._link = None

    async def link(self) -> Link:
        """The connection to publish on. Raises BrokerUnavailable, or Refused where the server lets nobody in."""
        if not self._is_open:
            raise NotConnected("the broker is not connected: `await broker.connect()` before, and nothing after close")
        if self._link is not None and not self._link.lost:
            return self._link
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._connect())
        return await asyncio.shield(self._opening)

    async def _connect(self) -> Link:
        link = self.new_link("publishing", self.address.heartbeat)
        await link.open()
        try:
            await self.make_again_what_is_in_memory(link)
        except BaseException:
            link.abort("nobody waits for it any more")
            raise
        self._link = link
        return link

    async def make_again_what_is_in_memory(self, link: Link) -> None:
        """A restart has lost the gate of what is delayed, and the queues of broadcasts and replies: a request must not
        be published before its reply's queue is there."""
        mine = [one for one in self._declared.values() if one.ephemeral and not is_exclusive(one)]
        queues = (method for one in mine for method in topology.queue(self.names, one))
        with contextlib.suppress(Refused):  # the exchange is gone too: who publishes finds out
            await self.run(itertools.chain(delays.gate(), queues), link)

    def new_link(self, purpose: str, heartbeat: float) -> Link:
        return Link(self.address, heartbeat=heartbeat, purpose=f"carteiro {self.names.prefix} {purpose}")

    # -- what is declared -------------------------------------------------------------------------------------------

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        here = [one for one in subscriptions if not is_exclusive(one)]
        await self.run(method for one in here for method in topology.queue(self.names, one))
        await self.register.add([one for one in subscriptions if not one.ephemeral])
        for one in subscriptions:
            if isinstance(one.source, RabbitQueue) and one.source.is_stream:
                await positions.begin(self, one, one.source)
        self._declared.update((one, one) for one in subscriptions)

    async def restore(self) -> None:
        """Make again what someone has deleted: what all share, and each group that there is, whoever declared it.

        Broadcasts of other processes they alone know.
        """
        await self.until_noticed()
        if await self._prepare():
            return  # with the list, nobody knows of others
        listing = await self.register.read()
        others = (Subscription(*one) for one in listing.groups if not one[0].startswith(OWN_TOPICS))
        own = [
            one
            for one in self._declared.values()
            if one.ephemeral or (one.source is not None and (one.topic, one.group) in listing.groups)
        ]
        await self.run(method for one in others for method in topology.queue(self.names, one))
        await self.run(topology.letters(one.queue) for one in listing.letters)
        await self.declare(own)

    async def until_noticed(self) -> None:
        """Return when a queue that was deleted can be made again without harm to those who consumed of it.

        A server before 4.0 looks every 30 ms whether it is gone, and only then tells them. If it is there again by then
        it goes on with that by itself, loses track of it, and brings nothing any more.
        """
        if (await self.link()).version < _TELLS_ALL:
            await self.clock.sleep(_NOTICED)

    async def _prepare(self) -> bool:
        """Declare what all share; and if there is no list of the groups yet, what this process has, and return True.

        Where that breaks off, the next call goes on with it, though there is a list by then: what is not in it counts
        as removed.
        """
        await self.run(topology.common(self.names))
        if await self.register.is_missing():
            self._unlisted = self._letters | (self._unlisted or set())
            await self.register.make()
        self.forget_made()
        unlisted = self._unlisted
        if unlisted is None:
            return False
        await self.declare(list(self._declared.values()))
        for letters in unlisted:
            await self.make_letters(letters)
        self._unlisted = None
        return True

    async def is_known(self, exchange: str, routing_key: str) -> bool:
        """Whether there should be a queue for what is published so: then the server has lost that, or a binding."""
        if exchange == self.names.exchange(""):
            return (await self.register.read(fresh=False)).groups_of(routing_key) > 0
        if not exchange:
            return any(one.queue == routing_key for one in (await self.register.read(fresh=False)).letters)
        return delays.is_level(exchange)

    def knows(self, subscription: Subscription) -> bool:
        """Whether this process has declared it, and nobody has removed it here."""
        return subscription in self._declared

    def forget(self, subscription: Subscription) -> None:
        self._declared.pop(subscription, None)

    async def make_letters(self, letters: Letters) -> None:
        """See that a queue of dead letters is there."""
        if letters not in self._letters:
            await self.run([topology.letters(letters.queue)])
            await self.register.note_letters(letters)
            self._letters.add(letters)

    async def make_targets(self, messages: Iterable[Outgoing]) -> None:
        """See that what they are published to is there, if it is not for topics."""
        for target, delayed in {(one.target, one.delay > 0) for one in messages if one.target is not None}:
            assert isinstance(target, RabbitExchange | RabbitQueue)
            known = (target if isinstance(target, RabbitQueue) else target.to(""), delayed)  # whatever the key
            if known not in self._targets:
                if not (isinstance(target, RabbitQueue) and target.exclusive):
                    await self.run(topology.native(target, delays_lead_there=delayed))
                self._targets.add(known)

    def forget_made(self) -> None:
        """One of what was made for messages, for letters or by their targets, is not there any more."""
        self._letters.clear()
        self._targets.clear()

    async def run(self, methods: Iterable[bytes], link: Link | None = None) -> list[Any]:
        """The answers to methods that are sent together. Raises what the first of them is refused with."""
        channel = await (link or await self.link()).channel()
        try:
            asked = [channel.ask(method) for method in methods]
            return [await channel.answered(answer) for answer in asked]
        finally:
            await channel.close()


def is_exclusive(subscription: Subscription) -> bool:
    """Whether its queue is for the connection alone that declares it: its consumer's, then."""
    return isinstance(subscription.source, RabbitQueue) and subscription.source.exclusive
