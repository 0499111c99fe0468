"""Taking over what others put into lists and streams, or send through channels.

It is moved, in one step of the server, into the queues that carteiro has of it, and from there on it is a message like
any other: leased, fenced, tried again, dead in the end. It is moved when a consumer fetches and has room, and no more
than it has room for; until then it stays where it was, and whoever else reads there can have it.

What to look at is known without polling and without a connection for each: a source is *hot* while it may hold
something. Once it was found empty it is *armed*: the server is to say when its key changes (client-side caching does
that, for a key that is not there too), it is looked at a last time, and is cold until then. The other way, to block on
each of the keys, takes a connection a list, and moves an element onto itself to wait without taking it.

A channel keeps nothing, so that what comes through it waits in this process, and beyond a bound is dropped.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from carteiro.backends.redis import scripts
from carteiro.backends.redis.natives import CHANNEL, RedisChannel, RedisList, RedisStream
from carteiro.backends.redis.publishing import LARGEST, packed_entry, raw
from carteiro.backends.redis.routes import Routes
from carteiro.message import Outgoing, Subscription, new_id

if TYPE_CHECKING:
    from carteiro.backends.redis.server import Server

log = logging.getLogger("carteiro.redis")

AT_MOST: Final = 500
"""Messages that one step moves."""
WAITING: Final = 10_000
"""Messages of a channel that wait in this process, and"""
BYTES: Final = 64 * 1024 * 1024
"""how much they may take."""


class Channel:
    """What has come through a channel, or several by a pattern, and is in no queue yet."""

    def __init__(self, source: RedisChannel) -> None:
        self.on_message: Callable[[], None] = lambda: None
        self.waiting: deque[Outgoing] = deque()
        self._source = source
        self._size = 0
        self._dropped = 0

    def heard(self, push: Sequence[Any]) -> None:
        channel, body = push[-2:]
        if len(self.waiting) >= WAITING or self._size + len(body) > BYTES:
            self._dropped += 1
            return
        id = new_id()
        headers = {CHANNEL: channel.decode(errors="backslashreplace")}
        self.waiting.append(Outgoing(id, self._source.topic, body, None, headers, id))
        self._size += len(body)
        self.on_message()

    def taken(self, count: int) -> None:
        for _ in range(count):
            self._size -= len(self.waiting.popleft().body)
        if self._dropped:
            log.error(
                "%r: %d messages were dropped, since %d waited for their handlers already",
                self._source, self._dropped, WAITING,
            )  # fmt: skip
            self._dropped = 0


class Natives:
    """What a server's connection knows of them, whoever consumes."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.channels: dict[Subscription, Channel] = {}
        self._positions: dict[Subscription, str] = {}

    async def open(self, subscriptions: Iterable[Subscription]) -> None:
        """From now on nothing is missed. Raises BrokerError for a key that holds something else."""
        for one in subscriptions:
            source = one.source
            if isinstance(source, RedisChannel):
                self._listen(one, source)
            elif isinstance(source, RedisList):
                await self._server.run(scripts.OPEN, ("list", source.name))
            elif isinstance(source, RedisStream):
                place, start = ("stream", source.name), self.start_of(one)
                position = await self._server.run(scripts.OPEN, place, one.group, start)
                self._positions[one] = position.decode()

    def start_of(self, subscription: Subscription) -> str:
        """Where its consumer group begins, as XGROUP CREATE takes it; one that was taken away goes on where it was."""
        start = subscription.start
        if subscription in self._positions:
            return self._positions[subscription]
        if isinstance(start, str):
            return "0" if start == "earliest" else "$"
        return f"{max(int(start * 1000) - 1, 0)}"

    def reached(self, subscription: Subscription, entry: bytes) -> None:
        """Its consumer group has had entries up to this one."""
        self._positions[subscription] = entry.decode()

    def _listen(self, subscription: Subscription, source: RedisChannel) -> None:
        if subscription not in self.channels:
            channel = self.channels[subscription] = Channel(source)
            self._server.link.news.listen(_kind(source), source.name, channel.heard)

    def close(self, subscription: Subscription) -> None:
        source = subscription.source
        if isinstance(source, RedisChannel) and (channel := self.channels.pop(subscription, None)):
            self._server.link.news.unlisten(_kind(source), source.name, channel.heard)


class Sources:
    """Those of one consumer. `hot` are the ones to be looked at; `on_hot` is called when one becomes so."""

    def __init__(self, server: Server, subscriptions: Iterable[Subscription], on_hot: Callable[[], None]) -> None:
        self._server = server
        self._all = [one for one in subscriptions if one.source is not None]
        self._on_hot = on_hot
        self.hot = set(self._all)
        self._empty: set[Subscription] = set()
        self._armed: set[Subscription] = set()
        self._moving: dict[Subscription, asyncio.Task[None]] = {}
        self._listeners: dict[Subscription, Callable[[Sequence[Any]], None]] = {}
        for one in self._all:
            if one in server.natives.channels:
                server.natives.channels[one].on_message = partial(self._changed, one)
            elif isinstance(one.source, RedisList | RedisStream):
                self._listeners[one] = partial(self._changed, one)
                server.link.news.listen("invalidate", one.source.name, self._listeners[one])

    def heat(self) -> None:
        """Look at all of them again."""
        self.hot.update(self._all)
        self._armed.clear()

    async def fill(self, asked: Sequence[tuple[Subscription, int]]) -> None:
        """Move what there is room for into the queues. What a cancelled call has begun goes on."""
        moving = [self._moving.get(one) or self._begin(one, limit) for one, limit in asked if one in self.hot]
        if moving:
            await asyncio.wait(moving)
        for task in moving:
            task.result()

    async def close(self) -> None:
        if self._moving:
            await asyncio.wait(self._moving.values())
        for one, listener in self._listeners.items():
            assert isinstance(one.source, RedisList | RedisStream)
            self._server.link.news.unlisten("invalidate", one.source.name, listener)
        for one in self._all:
            self._server.natives.close(one)

    def _changed(self, subscription: Subscription, push: Sequence[Any] = ()) -> None:
        self._armed.discard(subscription)
        self.hot.add(subscription)
        self._on_hot()

    def _begin(self, subscription: Subscription, limit: int) -> asyncio.Task[None]:
        moving = self._moving[subscription] = asyncio.create_task(self._move(subscription, min(limit, AT_MOST)))
        moving.add_done_callback(partial(self._ended, subscription))
        return moving

    def _ended(self, subscription: Subscription, moving: asyncio.Task[None]) -> None:
        del self._moving[subscription]
        if not moving.cancelled():
            moving.exception()  # whoever waits has it

    async def _move(self, subscription: Subscription, limit: int) -> None:
        source = subscription.source
        if isinstance(source, RedisChannel):
            channel = self._server.natives.channels.get(subscription)
            if channel is not None and channel.waiting:
                channel.taken((await self._import(subscription, limit))[0])
            if channel is None or not channel.waiting:
                self.hot.discard(subscription)
            return
        if subscription in self._empty and subscription not in self._armed:
            await self._arm(subscription)
        _, empty, last = await self._import(subscription, limit)
        if last:
            self._server.natives.reached(subscription, last)
        if not empty:
            self._empty.discard(subscription)
            return
        self._empty.add(subscription)
        if subscription in self._armed:  # which it is not any more if it has changed meanwhile
            self.hot.discard(subscription)

    async def _arm(self, subscription: Subscription) -> None:
        assert isinstance(subscription.source, RedisList | RedisStream)
        self._armed.add(subscription)
        try:
            await self._server.link.commands(
                ("CLIENT", "TRACKING", "ON", "OPTIN"),
                ("CLIENT", "CACHING", "YES"),
                ("EXISTS", subscription.source.name),
            )
        except BaseException:
            self._armed.discard(subscription)
            raise

    async def _import(self, subscription: Subscription, limit: int) -> tuple[int, int, bytes | None]:
        """How many were moved, whether there are no more, and the id of the last one."""
        server = self._server

        async def attempt(routes: Routes) -> Any:
            if subscription not in routes:
                return 0, 0, None, []  # the claim that follows has it declared again, or says so
            request = self._request(subscription, limit, routes)
            return await server.run(scripts.IMPORT, routes.version, server.queue(subscription), *request)

        taken, empty, last, oversized = await server.with_routes(attempt)
        for place in oversized:
            log.error(
                "%r: a body of more than %d MB, which Redis hands out to nobody who listens, is left at `%s`",
                subscription.source, LARGEST >> 20, place.decode(),
            )  # fmt: skip
        return taken, empty, last

    def _request(self, subscription: Subscription, limit: int, routes: Routes) -> tuple[Any, ...]:
        """From the route on, as `import.lua` takes it."""
        source, server = subscription.source, self._server
        if isinstance(source, RedisList):
            # What is popped is gone for all: each group of the topic gets it.
            route = routes.targets(source.topic).route
            return route, limit, "list", source.name, source.topic, self._rows(limit), LARGEST, new_id()
        queue = (server.queue(subscription),)
        own: tuple[Any, ...] = ((), queue, False) if routes.is_ordered(subscription) else (queue, (), False)
        if isinstance(source, RedisStream):
            options = LARGEST, subscription.group, server.natives.start_of(subscription), source.body_field
            return own, limit, "stream", source.name, source.topic, self._rows(limit), *options
        waiting = list(server.natives.channels[subscription].waiting)[:limit]
        return own, limit, "channel", [msgspec.Raw(packed_entry(message, server.rows())) for message in waiting]

    def _rows(self, count: int) -> Any:
        return raw(b"".join(self._server.rows() for _ in range(count)))


def _kind(source: RedisChannel) -> str:
    return "pmessage" if source.pattern else "message"
