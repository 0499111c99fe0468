"""What the tests of the tour hold in hand: a broker, the apps that run on it, and what becomes of their messages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec
import pytest

from carteiro import Carteiro, Message, UnsupportedFeature
from carteiro.message import DeadLetter
from carteiro.ports.broker import Backend, GroupStatus, Inspector
from carteiro.ports.clock import SYSTEM_CLOCK, Clock
from carteiro.ports.features import Capability
from carteiro.ports.registry import open_backend
from carteiro.testing import VirtualClock
from carteiro.testing.wiretap import Crash, CrashPoint, Wiretap
from tests.servers.rabbitmq import RabbitServer

T = TypeVar("T")

PATIENCE = 20.0
"""Seconds, of the real ones, after which what a test waits for is taken not to come."""


class Handled(NamedTuple):
    """One attempt, as it ended: what the handler returned, or what it raised."""

    message: Message
    result: Any = None
    error: BaseException | None = None


class Follower:
    """Middleware that tells of every attempt at a message that its app makes."""

    def __init__(self) -> None:
        self._ended: asyncio.Queue[Handled] = asyncio.Queue()

    async def __call__(self, message: Message, call_next: Callable[[Message], Awaitable[Any]]) -> Any:
        try:
            result = await call_next(message)
        except BaseException as error:
            self._ended.put_nowait(Handled(message, error=error))
            raise
        self._ended.put_nowait(Handled(message, result))
        return result

    async def next(self) -> Handled:
        return await soon(self._ended.get())

    async def many(self, count: int) -> list[Handled]:
        return [await self.next() for _ in range(count)]

    @property
    def silent(self) -> bool:
        """Whether nothing has ended that was not asked for."""
        return self._ended.empty()


class MortalApp(Carteiro):
    """See `Stage.mortal_app`."""

    def __init__(self, name: str, tap: Wiretap, **options: Any) -> None:
        super().__init__(name, tap, **options)
        self.crashes = 0
        self.tap = tap

    def crash_at(self, topic: str, point: CrashPoint) -> None:
        """Have the worker die when next it comes to this point with a message of `topic`."""
        behind = frozenset(one for one in self.declared() if one.topic == topic)
        self.tap.crashes.append(Crash(point, behind, None, 1))


class Counts:
    """What AMQP does not tell of a RabbitMQ's queues: its own word for it. Not for those of broadcasts."""

    def __init__(self, server: RabbitServer, prefix: str) -> None:
        self._server = server
        self._prefix = prefix
        self._delayed_by_others = self._delayed(server.messages())

    async def complete(self, status: GroupStatus) -> GroupStatus:
        counts = await asyncio.to_thread(self._server.messages)
        held = counts.get(f"{self._prefix}.{status.topic}@{status.group}", 0)
        delayed = max(0, self._delayed(counts) - self._delayed_by_others)
        in_flight = max(0, held - status.waiting)
        return msgspec.structs.replace(status, delayed=delayed, retrying=0, in_flight=in_flight)

    @staticmethod
    def _delayed(counts: Mapping[str, int]) -> int:
        return sum(count for name, count in counts.items() if name.startswith("carteiro.delay."))


class Stage:
    """One broker. Its apps share it as processes on one machine would.

    `counts` completes what it tells of itself, and `store` is for its apps where it has none.
    """

    def __init__(self, url: str, counts: Counts | None = None, store: str | None = None) -> None:
        self.url = url
        self._counts = counts
        self.store = store or url
        self._options = {} if store is None else {"store": store}
        self.clock: Clock = SYSTEM_CLOCK
        self._running: dict[Carteiro, asyncio.Task[None]] = {}
        self._backends: list[Backend] = []

    def app(self, name: str = "shop", **options: Any) -> Carteiro:
        if isinstance(self.clock, VirtualClock):
            options.setdefault("lease", "1d")  # a step of time is no worker that was silent for so long
        return Carteiro(name, self.url, clock=self.clock, **{**self._options, **options})

    async def run(self, *apps: Carteiro, **options: Any) -> None:
        """Start them; returns once they consume."""
        for app in apps:
            running = self._running[app] = asyncio.create_task(app.run(**options))
            ready = asyncio.create_task(app.ready())
            await soon(asyncio.wait((running, ready), return_when=asyncio.FIRST_COMPLETED))
            if running.done():
                ready.cancel()
                running.result()

    def listen(self, *topics: str) -> tuple[Carteiro, Follower]:
        """An app of its own that takes what is published to these topics, as (topic, body)."""
        app = self.app("listener")

        async def hear(message: Message) -> tuple[str, bytes]:
            return message.topic, message.body

        for topic in topics:
            app.subscriber(topic)(hear)
        return app, follow(app)

    def mortal_app(self, name: str = "shop", **options: Any) -> MortalApp:
        """An app whose worker dies at `crash`, as by SIGKILL, and is at once replaced."""
        tap = Wiretap(open_backend(self.url, clock=self.clock))
        app = MortalApp(name, tap, clock=self.clock, **{**self._options, **options})

        def crash() -> None:
            app.crashes += 1
            assert app.worker is not None
            app.worker.kill()
            dead = self._running[app]
            self._running[app] = asyncio.create_task(replace(dead))

        async def replace(dead: asyncio.Task[None]) -> None:
            await asyncio.wait([dead])
            await app.run()

        tap.on_crash = crash
        return app

    async def stop(self, app: Carteiro) -> None:
        """As a service manager stops it; returns when it has."""
        app.stop()
        await soon(self._running.pop(app))

    async def close(self) -> None:
        for running in self._running.values():
            running.cancel()
        if self._running:
            await soon(asyncio.wait(self._running.values()))
        for backend in self._backends:
            await backend.broker.close()

    # -- time ------------------------------------------------------------------------------------------------------

    def hold_time(self) -> VirtualClock:
        """From now on, time passes for new apps and for the broker only where `pass_until` lets it.

        Skips the test on a broker whose delays are its server's own.
        """
        if self._counts is not None:
            pytest.skip("RabbitMQ's delays pass in real time: tests/rabbitmq and the kit have those")
        self.clock = clock = VirtualClock()
        return clock

    async def pass_until(self, happens: Awaitable[T], *, step: float = 1.0, most: float = 86_400.0) -> T:
        """Let the held time pass, in steps of so many seconds, until something happens; fail after `most` of them."""
        assert isinstance(self.clock, VirtualClock)
        awaited = asyncio.ensure_future(happens)
        until = self.clock.time() + most
        while not awaited.done():
            await self._let_things_happen(awaited)
            if awaited.done():
                break
            assert self.clock.time() < until, f"it did not happen within {most:g} s"
            self.clock.advance_to(self.clock.time() + step)
        return await awaited

    async def _let_things_happen(self, awaited: asyncio.Future[Any]) -> None:
        if self.url.startswith("memory"):
            for _ in range(20):
                await asyncio.sleep(0)
        else:  # its thread needs a moment to look at the clock, and more to commit what is under way
            busy = any(app.worker is not None and app.worker.busy for app in self._running)
            await asyncio.wait((awaited,), timeout=0.03 if busy else 0.004)

    # -- looking ---------------------------------------------------------------------------------------------------

    async def inspector(self) -> Inspector:
        backend = open_backend(self.url, clock=self.clock)
        await backend.broker.connect()
        self._backends.append(backend)
        assert isinstance(backend.broker, Inspector)
        return backend.broker

    async def dead(self, queue: str | None = None) -> list[DeadLetter]:
        return list(await (await self.inspector()).dead_letters(queue))

    async def group(self, topic: str, group: str = "shop") -> GroupStatus:
        statuses = await (await self.inspector()).groups()
        return await self._complete(next(one for one in statuses if (one.topic, one.group) == (topic, group)))

    async def _complete(self, status: GroupStatus) -> GroupStatus:
        return status if self._counts is None else await self._counts.complete(status)

    async def needs(self, capability: Capability) -> None:
        """Skips the test on a broker without it, once an app that asks for it was refused at its start."""
        if self._counts is None:
            return  # the others have all that the tour needs, and the one in memory has the clock of who opens it first
        features = open_backend(self.url).broker.features
        app = self.app("needy")

        async def handle() -> None: ...

        app.subscriber("orders", ordered=capability is Capability.ORDERED)(handle)
        if capability is Capability.RETENTION:
            app.topic("orders", retain="7d")
        with pytest.raises(UnsupportedFeature, match=rf"(?=.*{capability.value})(?=.*the {features.backend} broker)"):
            await soon(app.run())
        pytest.skip(f"{features.backend} has no {capability.value}: {features[capability].how}")

    async def settled(self, topic: str, group: str = "shop") -> GroupStatus:
        """The group's counts, once nothing waits and nothing is being handled."""
        return await self.until(topic, lambda of: of.left == 0, group=group)

    async def until(self, topic: str, holds: Callable[[GroupStatus], bool], *, group: str = "shop") -> GroupStatus:
        """The group's counts, once this holds of them."""
        inspector = await self.inspector()

        async def look() -> GroupStatus:
            while True:
                for status in await inspector.groups():
                    if (status.topic, status.group) == (topic, group) and holds(whole := await self._complete(status)):
                        return whole
                await asyncio.sleep(0)  # a broker tells nobody: look again

        return await soon(look())


def follow(app: Carteiro) -> Follower:
    follower = Follower()
    app.middleware(follower)
    return follower


async def soon(awaitable: Awaitable[T]) -> T:
    return await asyncio.wait_for(awaitable, PATIENCE)
