"""A claim on some subscriptions of the server.

Each queue is *hot* or *cold*. A hot one is asked for in the next claim. One that had nothing is cold: the claim has
armed it, and the next who adds to it wakes those who listen, which makes it hot again. So does the time at which
something in it becomes visible: what is delayed, or a lease that ends. Nobody polls; only, since a pushed message may
be lost, every beat makes all of them hot once.

A fetch that got nothing waits, and the server knows: what is published then is leased and pushed to it in one step.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from carteiro.backends.redis import scripts
from carteiro.backends.redis.importing import Sources
from carteiro.backends.redis.link import Listener
from carteiro.backends.redis.mishaps import NoQueue
from carteiro.backends.redis.publishing import micros, raw
from carteiro.backends.redis.routes import Routes, unknown
from carteiro.backends.redis.server import Server
from carteiro.backends.redis.settling import Settlement, settlements
from carteiro.errors import BrokerUnavailable, NotConnected
from carteiro.message import Action, Delivery, Failure, Outcome, Subscription, new_id
from carteiro.ports.broker import Unrouted
from carteiro.ports.leftover import Leftover
from carteiro.ports.records import at_attempt, unpack_all

_ROW: Final = 12
_HEAD: Final = struct.Struct(">HI8s")
_HOT: Final = -math.inf

_decode_failures = msgspec.msgpack.Decoder(tuple[Failure, ...]).decode


class RedisConsumer:
    """The Consumer port."""

    def __init__(
        self,
        server: Server,
        subscriptions: Sequence[Subscription],
        unrouted: Unrouted,
        on_close: Callable[[RedisConsumer], None],
    ) -> None:
        self.id = new_id()
        self.closed = False
        self._server = server
        self._unrouted = unrouted
        self._on_close = on_close
        self._queues = {one: server.queue(one) for one in subscriptions}
        self._subscriptions = {queue: one for one, queue in self._queues.items()}
        self._look_at = dict.fromkeys(subscriptions, _HOT)
        self._listeners = {one: self._waker(one) for one in subscriptions}
        self._leftover = Leftover()
        self._changed = asyncio.Event()
        self._gone: BrokerUnavailable | None = None
        self._channel = self._new_channel()
        self._sources = Sources(server, subscriptions, self._changed.set)
        self._waiting: set[str] = set()  # the queues of which something may be handed over
        for one, queue in self._queues.items():
            server.link.listen(f"{queue}:wake", self._listeners[one])
        server.link.listen(f"{server.base}:changed", self._on_changed)
        server.link.listen(self._channel, self._on_handed_over)
        server.link.on_lost(self._on_lost)

    def _new_channel(self) -> str:
        return f"{self._server.base}:to:{new_id()}"

    @property
    def listening(self) -> list[str]:
        """What the server's `consumers` hold of it."""
        return [f"{self.id} {queue}" for queue in self._subscriptions]

    async def fetch(self, room: Mapping[Subscription, int]) -> Sequence[Delivery]:
        """Raises NotConnected once the consumer is closed, also where it was waiting then."""
        try:
            return await self._fetch(room)
        except BrokerUnavailable:
            self._gone = None  # it is said once, also where a claim was under way
            raise
        finally:
            self._unwait()

    async def _fetch(self, room: Mapping[Subscription, int]) -> Sequence[Delivery]:
        while True:
            if self.closed:
                raise NotConnected("this consumer is closed: it fetches no more")
            if self._gone is not None:
                raise self._gone
            if self._leftover and (taken := await self._take_leftover(room)):
                return taken
            self._changed.clear()
            now = self._server.clock.monotonic()
            look_at, hot = self._look_at, self._sources.hot
            asked = [(one, limit) for one, limit in room.items() if limit > 0 and (look_at[one] <= now or one in hot)]
            if not asked:
                next_look = min((look_at[one] for one in room if room[one] > 0), default=math.inf)
                await self._server.wait(self._changed, next_look - now)
                continue
            if hot:
                await self._sources.fill(asked)
                if self._leftover and (taken := await self._take_leftover(room)):
                    return taken  # what was moved was handed over to us
            if deliveries := await self._claim(asked):
                return deliveries

    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[Delivery]:
        """Up to about 64 MB are one step. What is more goes in several, and where it raises the first of them may be
        done: their deliveries come back as lost from a second try.
        """
        lost: list[Delivery] = []
        for settlement in settlements(outcomes):
            lost += await self._settle(settlement)
        return lost

    async def _settle(self, settlement: Settlement) -> list[Delivery]:
        async def attempt(routes: Routes | None) -> Any:
            return await self._server.run(scripts.SETTLE, *settlement.request(routes, self._server.rows))

        answer = await (self._server.with_routes(attempt) if settlement.needs_routes else attempt(None))
        for message in settlement.unrouted(answer):
            self._unrouted.note(message)
        return settlement.lost(answer)

    async def renew(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        leases: dict[tuple[str, float], list[bytes]] = {}
        for delivery in deliveries:
            queue, token = delivery.token
            leases.setdefault((queue, delivery.subscription.lease), []).append(token)
        if not leases:
            return []
        request = [
            part for (queue, lease), tokens in leases.items() for part in (queue, micros(lease), raw(b"".join(tokens)))
        ]
        lost = set(await self._server.run(scripts.RENEW, *request))
        return [delivery for delivery in deliveries if delivery.token[1] in lost]

    async def close(self) -> None:
        """What no handler has seen is handed back at once, and does not count as an attempt.

        Where the server is away, that and what is ephemeral are left to their time: a process can end without it.
        """
        if self.closed:
            return
        self.closed = True
        link = self._server.link
        for one, queue in self._queues.items():
            link.unlisten(f"{queue}:wake", self._listeners[one])
        link.unlisten(f"{self._server.base}:changed", self._on_changed)
        link.off_lost(self._on_lost)
        self._unwait()
        self._changed.set()
        self._on_close(self)
        await self._sources.close()
        with contextlib.suppress(BrokerUnavailable):
            await self._server.leave([one for one in self._queues if one.ephemeral], self.listening)
            # Only now: a claim whose fetch was cancelled was answered before that, and nothing is handed over after it.
            await self._hand_back(self._leftover.take_all())
        link.unlisten(self._channel, self._on_handed_over)

    def heat(self) -> None:
        """Look at every queue again."""
        self._sources.heat()
        self._look_at = dict.fromkeys(self._look_at, _HOT)
        self._changed.set()

    # -- claiming --------------------------------------------------------------------------------------------------

    async def _claim(self, asked: Sequence[tuple[Subscription, int]]) -> list[Delivery]:
        """From here on a message that comes in meanwhile makes its queue hot again, and so is not overlooked."""
        # A token each: a message has the same row in all its queues, and is to be told apart from itself.
        claims = [(one, limit, os.urandom(8)) for one, limit in asked]
        request: list[Any] = [(self.id, self._channel)]
        for one, limit, token in claims:
            self._look_at[one] = math.inf
            request += (self._queues[one], raw(token), limit, micros(one.lease))
        try:
            answer = await self._server.run(scripts.CLAIM, *request, orphaned=partial(self._keep, claims))
        except NoQueue:
            self._heat(asked)
            routes = await self._server.restore()
            for one, _ in asked:
                if one not in routes:
                    raise unknown(one) from None
            return []
        except BaseException:
            self._heat(asked)
            raise
        return self._read(claims, answer)

    def _read(self, claims: Sequence[tuple[Subscription, int, bytes]], answer: Sequence[Any]) -> list[Delivery]:
        now, *answers = answer
        local = self._server.clock.monotonic()
        deliveries: list[Delivery] = []
        for index, (one, _, token) in enumerate(claims):
            rows, records, again, at = answers[4 * index : 4 * index + 4]
            if rows:
                self._look_at[one] = _HOT  # to wait for more of what is busy, the next fetch has to ask once more
                deliveries += _deliveries(one, self._queues[one], token, rows, records, again)
            elif at >= 0:
                self._look_at[one] = min(self._look_at[one], local + (at - now) / 1_000_000)
        if not deliveries:
            self._waiting.update(self._queues[one] for one, _, _ in claims)
        return deliveries

    def _heat(self, asked: Sequence[tuple[Subscription, int]]) -> None:
        for one, _ in asked:
            self._look_at[one] = _HOT

    def _waker(self, subscription: Subscription) -> Listener:
        def wake(after: bytes) -> None:
            at = self._server.clock.monotonic() + int(after) / 1_000_000 if after else _HOT
            self._look_at[subscription] = min(self._look_at[subscription], at)
            self._changed.set()

        return wake

    def _on_changed(self, _: bytes) -> None:
        self.heat()

    def _on_handed_over(self, message: bytes) -> None:
        name_size, row_size, token = _HEAD.unpack_from(message)
        name_end = _HEAD.size + name_size
        rows_end = name_end + row_size
        queue = message[_HEAD.size : name_end].decode()
        one = self._subscriptions[queue]
        self._waiting.discard(queue)
        self._look_at[one] = _HOT
        self._hold(_deliveries(one, queue, token, message[name_end:rows_end], message[rows_end:], ()))

    def _unwait(self) -> None:
        """Nobody fetches any more: what is published from now on is for others."""
        if self._waiting:
            self._server.send(scripts.UNWAIT, self.id, self._channel, list(self._waiting))
            self._waiting.clear()

    def _on_lost(self) -> None:
        # The server may still hold that it waits: what is handed over to the channel that it had goes to others.
        self._server.link.unlisten(self._channel, self._on_handed_over)
        self._channel = self._new_channel()
        self._server.link.listen(self._channel, self._on_handed_over)
        self._waiting.clear()
        self._gone = BrokerUnavailable(f"the connection to `{self._server.link.address}` is lost")
        self.heat()

    # -- what was claimed and not taken ------------------------------------------------------------------------------

    def _keep(self, claims: Sequence[tuple[Subscription, int, bytes]], answer: Any) -> None:
        """What a claim has brought whose fetch was cancelled meanwhile."""
        if isinstance(answer, Exception):
            return  # nothing was claimed; the next fetch asks again
        self._hold(self._read(claims, answer))
        self._unwait()

    def _hold(self, deliveries: Sequence[Delivery]) -> None:
        self._leftover.add(deliveries, self._server.clock.monotonic())
        self._changed.set()

    async def _take_leftover(self, room: Mapping[Subscription, int]) -> list[Delivery]:
        await self._hand_back(self._leftover.take_stale(self._server.clock.monotonic()))
        return self._leftover.take(room, self._server.clock.monotonic())

    async def _hand_back(self, unseen: Sequence[Delivery]) -> None:
        await self.settle([Outcome(delivery, Action.RELEASE) for delivery in unseen])


def _deliveries(
    subscription: Subscription,
    queue: str,
    token: bytes,
    rows: bytes,
    records: bytes,
    again: Sequence[tuple[int, int, bytes | None]],
) -> list[Delivery]:
    """Raises BrokerCorrupted for a record that cannot be read."""
    messages = unpack_all(records, len(rows) // _ROW)
    tokens = [(queue, rows[start : start + _ROW] + token) for start in range(0, len(rows), _ROW)]
    if not again:
        return [Delivery(subscription, message, token) for message, token in zip(messages, tokens, strict=True)]
    histories: dict[int, tuple[Failure, ...]] = {}
    for index, tries, failures in again:
        messages[index] = at_attempt(messages[index], tries + 1)
        histories[index] = () if failures is None else _decode_failures(failures)
    return [
        Delivery(subscription, message, tokens[index], histories.get(index, ()))
        for index, message in enumerate(messages)
    ]
