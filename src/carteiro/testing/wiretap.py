"""A broker that notes what passes through it, and whose consumers can die where a test wants them to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import msgspec

from carteiro.message import Action, Delivery, Native, Outcome, Outgoing, Retention, Subscription
from carteiro.ports.broker import Backend, Broker, Check, Consumer, Inspector, Unrouted
from carteiro.ports.features import Features
from carteiro.ports.store import Store

CrashPoint = Literal["claimed", "before_ack", "after_ack"]
"""After the fetch; when the handler has ended and nothing is settled; when it is settled and nobody knows yet."""


class Crash(msgspec.Struct, eq=False):
    """The worker is to die `left` times at this point, with a message of these subscriptions (and of this type)."""

    point: CrashPoint
    subscriptions: frozenset[Subscription]
    type: str | None
    left: int

    def hits(self, point: CrashPoint, delivery: Delivery) -> bool:
        return (
            self.left > 0
            and point == self.point
            and delivery.subscription in self.subscriptions
            and self.type in (None, delivery.message.type)
        )


class Wiretap:
    """A backend around another. `published` holds what was published or emitted, in order; taps may have one list."""

    def __init__(self, inner: Backend, published: list[Outgoing] | None = None) -> None:
        self.inner = inner
        self.published: list[Outgoing] = [] if published is None else published
        self.activity = 0
        """Grows with whatever happens."""
        self.pending = 0
        """Calls other than fetches that are under way."""
        self.sources: set[Native] = set()
        """The objects that are subscribed to in place of topics."""
        self.crashes: list[Crash] = []
        self.on_crash: Callable[[], None] = lambda: None
        self._broker = _Broker(inner.broker, self)

    @property
    def broker(self) -> Broker:
        return self._broker

    @property
    def store(self) -> Store | None:
        return self.inner.store

    async def doctor(self) -> Sequence[Check]:
        return await self.inner.doctor()

    def routed(self, messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        """With those that come from other objects than they were published to, unless `inner` sees to that itself."""
        system = self.inner.broker.features.backend
        sent = [one for one in messages if one.target is not None and one.target.backend != system]
        received = [source.received(message) for message in sent for source in self.sources]
        return [*messages, *(one for one in received if one is not None)] if sent else messages

    def crashes_at(self, point: CrashPoint, deliveries: Sequence[Delivery]) -> bool:
        """Whether the worker dies here; each crash asked for happens once."""
        for crash in self.crashes:
            if any(crash.hits(point, delivery) for delivery in deliveries):
                crash.left -= 1
                return True
        return False


_INSPECTOR = ("groups", "peek", "dead_letters", "replay", "purge_dead", "purge", "remove_group", "rewind")


class _Broker:
    def __init__(self, inner: Broker, tap: Wiretap) -> None:
        self._inner = inner
        self._tap = tap
        if isinstance(inner, Inspector):  # then this is one, too
            for name in _INSPECTOR:
                setattr(self, name, getattr(inner, name))

    @property
    def features(self) -> Features:
        return msgspec.structs.replace(self._inner.features, stands_in=True)

    @property
    def store(self) -> Store | None:
        return self._inner.store

    @property
    def unrouted(self) -> Unrouted:
        return self._inner.unrouted

    async def connect(self) -> None:
        await self._inner.connect()

    async def close(self) -> None:
        await self._inner.close()

    async def declare(self, subscriptions: Sequence[Subscription], retentions: Sequence[Retention] = ()) -> None:
        self._tap.sources.update(one.source for one in subscriptions if one.source is not None)
        await self._inner.declare(subscriptions, retentions)

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        tap = self._tap
        tap.pending += 1
        try:
            unrouted = await self._inner.publish(tap.routed(messages))
        finally:
            tap.pending -= 1
            tap.activity += 1
        tap.published.extend(messages)
        return [message for message in unrouted if message.target is None]  # the others are not for groups

    def consume(self, subscriptions: Sequence[Subscription]) -> Consumer:
        return _Consumer(self._inner.consume(subscriptions), self._tap)


class _Consumer:
    def __init__(self, inner: Consumer, tap: Wiretap) -> None:
        self._inner = inner
        self._tap = tap
        self._dead = False

    async def fetch(self, room: Mapping[Subscription, int]) -> Sequence[Delivery]:
        if self._dead:
            await asyncio.Event().wait()
        self._tap.activity += 1
        try:
            deliveries = await self._inner.fetch(room)
        finally:
            self._tap.activity += 1
        if self._tap.crashes_at("claimed", deliveries):
            await self._die()
        return deliveries

    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[Delivery]:
        tap = self._tap
        handled = [outcome.delivery for outcome in outcomes if outcome.action is not Action.RELEASE]
        if self._dead or tap.crashes_at("before_ack", handled):
            await self._die()
        tap.pending += 1
        try:
            lost = await self._inner.settle([self._routed(outcome) for outcome in outcomes])
            refused = set(lost)
            for outcome in outcomes:
                if outcome.delivery not in refused:
                    tap.published.extend([*outcome.emits, *await self._joined(outcome)])
        finally:
            tap.pending -= 1
            tap.activity += 1
        if tap.crashes_at("after_ack", handled):
            await self._die()
        return lost

    def _routed(self, outcome: Outcome) -> Outcome:
        emits = self._tap.routed(outcome.emits)
        joins = [msgspec.structs.replace(join, emits=self._tap.routed(join.emits)) for join in outcome.joins]
        if emits is outcome.emits and not joins:
            return outcome
        return msgspec.structs.replace(outcome, emits=emits, joins=joins)

    async def _joined(self, outcome: Outcome) -> list[Outgoing]:
        """What the joins of a settled outcome have emitted: made once more, they change nothing and say it again."""
        store = self._tap.store
        if not outcome.joins or store is None:
            return []
        told = await store.join(outcome.joins)
        return [emit for join, emitted in zip(outcome.joins, told, strict=True) if emitted for emit in join.emits]

    async def renew(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        return deliveries if self._dead else await self._inner.renew(deliveries)

    async def close(self) -> None:
        if not self._dead:
            await self._inner.close()

    async def _die(self) -> None:
        """What a SIGKILL leaves: claims that nobody settles."""
        if not self._dead:
            self._dead = True
            self._tap.activity += 1
            self._tap.on_crash()
        await asyncio.Event().wait()
