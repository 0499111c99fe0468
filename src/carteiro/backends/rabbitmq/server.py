"""What the broker, its consumers and the inspector share: the connection to publish on, and what is declared.

That connection is made when it is needed and made again after it was lost. Consumers have one each, of their own: a
server that is short of memory stops reading from connections that publish, and acks must get through all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from carteiro.backends.rabbitmq import topology
from carteiro.backends.rabbitmq.address import Address
from carteiro.backends.rabbitmq.link import Link
from carteiro.backends.rabbitmq.names import Names
from carteiro.backends.rabbitmq.register import Letters, Register
from carteiro.errors import BrokerUnavailable, NotConnected
from carteiro.message import Subscription
from carteiro.ports.clock import Clock


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

    async def open(self) -> None:
        self._is_open = True
        await self.link()
        await self.restore()

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
        self._link = link
        return link

    def new_link(self, purpose: str, heartbeat: float) -> Link:
        return Link(self.address, heartbeat=heartbeat, purpose=f"carteiro {self.names.prefix} {purpose}")

    # -- what is declared -------------------------------------------------------------------------------------------

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        await self.run(method for one in subscriptions for method in topology.queue(self.names, one))
        await self.register.add([one for one in subscriptions if not one.ephemeral])
        self._declared.update((one, one) for one in subscriptions)

    async def restore(self) -> None:
        """Declare all that was declared: it is not there yet, or the server has lost it."""
        await self.run(topology.common(self.names))
        await self.register.make()
        await self.declare(list(self._declared.values()))

    def forget(self, subscription: Subscription) -> None:
        self._declared.pop(subscription, None)

    async def make_letters(self, letters: Letters) -> None:
        """See that a queue of dead letters is there."""
        if letters not in self._letters:
            await self.run([topology.letters(letters.queue)])
            await self.register.note_letters(letters)
            self._letters.add(letters)

    def forget_letters(self) -> None:
        """One of them is not there any more."""
        self._letters.clear()

    async def run(self, methods: Iterable[bytes]) -> list[Any]:
        """The answers to methods that are sent together. Raises what the first of them is refused with."""
        channel = await (await self.link()).channel()
        try:
            asked = [channel.ask(method) for method in methods]
            async with asyncio.timeout(self.address.timeout):
                return [await answer for answer in asked]
        except TimeoutError:
            raise BrokerUnavailable(f"`{channel.link.name}` did not answer within {self.address.timeout:g} s") from None
        finally:
            await channel.close()
