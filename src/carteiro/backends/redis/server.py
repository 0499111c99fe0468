"""One server as this process uses it: its link, its routes, and what has to be there."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

from carteiro.backends.redis import scripts
from carteiro.backends.redis.importing import Natives
from carteiro.backends.redis.link import Link, Orphaned
from carteiro.backends.redis.mishaps import Stale
from carteiro.backends.redis.publishing import Rows, micros, raw
from carteiro.backends.redis.routes import Routes, log_of, pack_route, queue_of
from carteiro.backends.redis.scripts import Script
from carteiro.errors import BrokerUnavailable
from carteiro.message import Retention, Subscription
from carteiro.ports.clock import SYSTEM_CLOCK, Clock

T = TypeVar("T")

LIFETIME = 30.0
"""Seconds after which a process that has not said that it lives counts as gone."""

_TRIES: Final = 100


def fresh() -> str:
    """A version or an epoch that was never before."""
    return os.urandom(8).hex()


class Server:
    """What broker, consumers and store share. Times are the server's, but under a clock that is held."""

    def __init__(self, link: Link, clock: Clock) -> None:
        self.link = link
        self.clock = clock
        self.base = link.address.base
        self.rows = Rows()
        self.natives = Natives(self)
        self._held = clock is not SYSTEM_CLOCK
        self._routes: Routes | None = None
        self._epoch: bytes | None = None
        self._declared: dict[Subscription, Subscription] = {}
        self._retained: dict[str, Retention] = {}
        self._connection = 0
        self._reading = asyncio.Lock()

    async def run(self, script: Script, *request: Any, orphaned: Orphaned | None = None) -> Any:
        now = micros(self.clock.time()) if self._held else False
        return await self.link.run(script, now, *request, orphaned=orphaned)

    def send(self, script: Script, *request: Any) -> None:
        """As `run`, without an answer: for what does no harm if it is not done."""
        self.link.send(script, False, *request)

    def queue(self, subscription: Subscription) -> str:
        return queue_of(self.base, subscription)

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        """Until the event is set; after so many seconds, if that is not for ever, it is."""
        if seconds == math.inf:
            await event.wait()
            return

        async def ring() -> None:
            await self.clock.sleep(seconds)
            event.set()

        timer = asyncio.create_task(ring())
        try:
            await event.wait()
        finally:
            timer.cancel()

    # -- routes ----------------------------------------------------------------------------------------------------

    async def routes(self) -> Routes:
        """The newest that is known; a script says STALE where that is not enough."""
        routes = self._routes
        if routes is None:
            # One at a time: who reads while our groups are being declared again would see that nobody gets anything.
            async with self._reading:
                routes = self._routes = self._routes or await self._read_routes()
        return routes

    def forget_routes(self) -> None:
        self._routes = None

    async def with_routes(self, attempt: Callable[[Routes], Awaitable[T]]) -> T:
        """`attempt` with the newest routes, again while it raises Stale."""
        for _ in range(_TRIES):
            try:
                return await attempt(await self.routes())
            except Stale:
                self.forget_routes()
        raise self._restless()

    def _restless(self) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"the groups of `{self.link.address}` change faster than this process can read them: it tried "
            f"{_TRIES} times. Look for a process that declares or removes groups over and over"
        )

    async def _read_routes(self) -> Routes:
        """After the server has lost what it had, or may have, what this process needs is declared again first.

        It has lost all if its epoch is another one: it was flushed, or came back without its data. The last it may have
        lost if the connection is another one: it was restarted, or a replica has taken its place.
        """
        connection = self.link.connections
        routes = await self._look()
        if self._epoch is None:
            self._epoch, self._connection = routes.epoch, connection
        while self._epoch is not None and (routes.epoch, self.link.connections) != (self._epoch, self._connection):
            connection = self.link.connections
            self._epoch = await self._restore()
            self._connection = connection
            routes = await self._look()
        return routes

    async def _restore(self) -> bytes:
        return await self._declare(self.declared(), list(self._retained.values()), restoring=True)

    async def _look(self) -> Routes:
        return Routes(self.base, *await self.run(scripts.ROUTES))

    async def seen(self, version: bytes | None) -> None:
        """The version that the server has now: where it is another one, what was lost with it is declared again."""
        if self._routes is None or self._routes.version != (version is not None and version.decode()):
            self.forget_routes()
            await self.routes()

    async def restore(self) -> Routes:
        """The routes, read anew. What this process declared is there again, but for what an operator has removed."""
        async with self._reading:
            routes = await self._read_routes()
            if any(one not in routes for one in self._declared):
                await self._restore()
                routes = await self._look()
            self._routes = routes
            return routes

    async def declare(self, subscriptions: Sequence[Subscription], retentions: Sequence[Retention]) -> None:
        epoch = await self._declare(subscriptions, retentions)
        if self._epoch is None:
            self._epoch, self._connection = epoch, self.link.connections
        self._declared.update((one, one) for one in subscriptions)
        self._retained.update((retention.topic, retention) for retention in retentions)
        await self.routes()

    def undeclare(self, subscriptions: Iterable[Subscription]) -> None:
        """They need not be there any more."""
        for subscription in subscriptions:
            self._declared.pop(subscription, None)

    def declared(self) -> list[Subscription]:
        return list(self._declared.values())

    async def _declare(
        self, subscriptions: Sequence[Subscription], retentions: Sequence[Retention], *, restoring: bool = False
    ) -> bytes:
        """Returns the epoch in which they are there.

        Restoring, it leaves out what an operator has removed, which this process does without from then on, and a group
        begins with what is published next: what was kept of before, it may have handled.
        """
        kept = {retention.topic: micros(retention.seconds) for retention in retentions}
        await self.natives.open(subscriptions)
        logs = list(kept.items())
        for _ in range(_TRIES):
            routes = await self._look()
            queues = [self._queue_request(one, routes, kept, restoring) for one in subscriptions]
            try:
                epoch, away = await self.run(scripts.DECLARE, routes.version, fresh(), fresh(), logs, queues, restoring)
            except Stale:
                continue
            self.forget_routes()
            self.undeclare([one for one in subscriptions if self.queue(one).encode() in away])
            found: bytes = epoch
            return found
        raise self._restless()

    def _queue_request(
        self, subscription: Subscription, routes: Routes, kept: dict[str, int], restoring: bool
    ) -> tuple[Any, ...]:
        since: int | bool = False
        if subscription.start != "latest" and not restoring:
            since = 0 if subscription.start == "earliest" else micros(float(subscription.start))
        return (
            self.queue(subscription),
            raw(pack_route(subscription)),
            subscription.ordered,
            micros(LIFETIME) if subscription.ephemeral else False,
            routes.logs(subscription.topic, kept),
            since,
        )

    async def remove(self, subscriptions: Sequence[Subscription]) -> None:
        """For good: a process that declared them does not restore them."""
        await self._remove(subscriptions, (), True)

    async def leave(self, ephemeral: Sequence[Subscription], consumers: Sequence[str]) -> None:
        """What belonged to consumers that are closed goes with them."""
        await self._remove(ephemeral, consumers, False)

    async def _remove(self, removed: Sequence[Subscription], consumers: Sequence[str], for_good: bool) -> None:
        self.undeclare(removed)
        await self.run(scripts.REMOVE, fresh(), [self.queue(one) for one in removed], consumers, for_good)
        self.forget_routes()

    def log(self, topic: str) -> str:
        return log_of(self.base, topic)
