"""A process that dies or freezes in the middle of its work: an app whose broker and store stop answering it there.

Whatever a dead one calls never returns, as after a SIGKILL: what it had done is done, and it does nothing more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, cast

import msgspec

from carteiro import BrokerUnavailable, Carteiro
from carteiro.ports.broker import Backend
from carteiro.ports.clock import Clock
from carteiro.ports.registry import open_backend

STORE = frozenset({"get", "scan", "write", "changed"})
BROKER = frozenset({"publish"})
CALLS = STORE | BROKER
"""Of the store and the broker: where something can happen to a process."""


class Fate(msgspec.Struct, frozen=True):
    """What happens before or after the process's call: it dies, or it is frozen for so many seconds."""

    point: Literal["before", "after"]
    frozen: float | None = None


Fates = Callable[[str, Sequence[Any]], Fate | None]
"""What happens at this call, with these arguments."""


class Dead(Exception):
    """What ends the calls of a dead process, when the test is over."""


def no_fate(call: str, args: Sequence[Any]) -> Fate | None:
    return None


def at(call: str, point: Literal["before", "after"], about: str = "", *, frozen: float | None = None) -> Fates:
    """At the first call of this kind that is about something with `about` in its key or topic."""
    left = [Fate(point, frozen)]

    def fate(name: str, args: Sequence[Any]) -> Fate | None:
        return left.pop() if left and name == call and about in _text(args) else None

    return fate


def _text(args: Sequence[Any]) -> str:
    """The keys of what is read and written, the topics of what is published."""
    return " ".join(_name(one) for arg in args for one in ([arg] if isinstance(arg, str) else arg))


def _name(one: Any) -> str:
    return one if isinstance(one, str) else str(getattr(one, "key", None) or getattr(one, "topic", one))


class Mortal:
    """A backend as one process sees it."""

    def __init__(self, inner: Backend, clock: Clock) -> None:
        self._inner = inner
        self._clock = clock
        self.fates: Fates = no_fate
        self.dead = False
        self.died = asyncio.Event()
        self.buried = asyncio.Event()
        """Set once nobody minds what is left of it."""
        self.away: frozenset[str] = frozenset()
        """The calls that nobody answers for a while."""
        self.calls: list[str] = []
        self.sent: list[str] = []
        """The ids of what it has published, safely or not."""
        self.broker = cast(Any, _Part(inner.broker, self))
        self.store = None if inner.store is None else cast(Any, _Part(inner.store, self))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def die(self) -> None:
        self.dead = True
        self.died.set()

    async def do(self, name: str, call: Callable[..., Awaitable[Any]], args: Sequence[Any], options: Any) -> Any:
        fate = None
        if not self.dead:
            self.calls.append(name)
            if name == "publish":
                self.sent += (message.id for message in args[0])
            fate = self.fates(name, args)
        if fate is not None and fate.point == "before":
            await self._meet(fate)
        await self._alive()
        if name in self.away:
            raise BrokerUnavailable(f"{name} is not answered")
        result = await call(*args, **options)
        if fate is not None and fate.point == "after":
            await self._meet(fate)
        await self._alive()
        return result

    async def _meet(self, fate: Fate) -> None:
        if fate.frozen is None:
            self.die()
        else:
            await self._clock.sleep(fate.frozen)

    async def _alive(self) -> None:
        if self.dead:
            await self.buried.wait()
            raise Dead


class _Part:
    """The broker or the store of a Mortal."""

    def __init__(self, inner: Any, mortal: Mortal) -> None:
        self._inner = inner
        self._mortal = mortal

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name == "store":
            return self._mortal.store
        if name not in CALLS:
            return found

        async def call(*args: Any, **options: Any) -> Any:
            return await self._mortal.do(name, found, args, options)

        return call

    async def close(self) -> None:
        await self._inner.close()


class _App(Carteiro):
    """With a store of its own, where the broker has none, that is as mortal."""

    mortal: Mortal

    def _open_store(self, url: str) -> Any:
        return _Part(super()._open_store(url), self.mortal)


class Process:
    """An app that fires schedules, and can die. It shares its broker with others of this URL."""

    def __init__(self, url: str, clock: Clock, *, name: str = "shop", store: str | None = None, **options: Any) -> None:
        self.mortal = Mortal(open_backend(url, clock=clock), clock)
        self.app = _App(name, cast(Backend, self.mortal), store=store, clock=clock, **options)
        self.app.mortal = self.mortal
        self._running: asyncio.Task[None] | None = None

    def start(self, **options: Any) -> asyncio.Task[None]:
        """Without waiting for it; it only fires, unless `options` say otherwise."""
        running = self._running = asyncio.create_task(self.app.run(**{"schedules": "only", **options}))
        return running

    async def end(self) -> None:
        """Return when nothing of it runs any more; what it does meanwhile stays without effect if it has died."""
        running = self._running
        self.mortal.buried.set()
        while running is not None and not running.done():
            running.cancel()
            await asyncio.wait([running], timeout=5)  # a second cancel would have it leave connections open
        if running is not None and not running.cancelled():
            with contextlib.suppress(Exception):
                running.result()

    def kill(self) -> None:
        self.mortal.die()
