"""A process for tests to kill while it fires schedules: `tests.faults.worker` with nothing but schedules.

    python -m tests.faults.schedule_worker URL OPTIONS

Its schedules send to `beats`, which others handle: what comes there is what was fired.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import msgspec

from carteiro import Carteiro, Publish, cron, every
from carteiro.message import Outgoing, Write
from carteiro.ports.broker import Backend
from carteiro.ports.store import Entry
from carteiro.schedules import firing
from carteiro.schedules.records import Keys
from tests.faults.worker import Layer, Options, WorkerApp, main

FiringStep = Literal["read", "claimed", "sending", "sent", "moved"]
"""Where it dies or stands still, when it fires for the first time: the records were read; claims are in the store; the
messages are about to leave; they are in the broker; the records are moved and nobody was told."""

APP = "clockwork"
KEYS = Keys(APP)
BEATS = "beats"


class ScheduleOptions(Options, kw_only=True, omit_defaults=True):
    module: ClassVar[str] = "tests.faults.schedule_worker"

    store: str | None = None
    """Its URL, where the broker has none."""
    first: int = 0
    """The number of its first schedule: they are called by their numbers."""
    count: int = 20
    """How many there are."""
    seconds: float = 1.0
    """The distance of those with even numbers; the others are all due at each full second."""
    claim: float = firing.LEASE
    """Seconds for which a claim holds."""
    at: FiringStep | None = None
    freezes: bool = False
    """Stand still there, in place of dying, and tell `again` when it looks at the store for the first time after."""


class ScheduleApp(WorkerApp):
    options: ScheduleOptions

    def __init__(self, url: str, options: ScheduleOptions) -> None:
        firing.LEASE = options.claim  # type: ignore[misc]
        self._froze = False
        super().__init__(url, options)

    def at(self, step: FiringStep) -> None:
        if self.options.at == step and not self._froze:
            self._froze = self.options.freezes
            os.kill(os.getpid(), signal.SIGSTOP if self.options.freezes else signal.SIGKILL)

    def looks(self) -> None:
        if self._froze:
            self.tell("again")

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.app.stop)
        announcing = asyncio.create_task(self._announce())
        await self.app.run(schedules="only")
        announcing.cancel()

    def _app(self, backend: Backend) -> Carteiro:
        options = self.options
        watched: Any = WatchedBackend(backend, self)
        app = Carteiro(APP, watched, store=options.store)
        opened = app._open_store
        app._open_store = lambda url: WatchedStore(opened(url), self)  # type: ignore[method-assign]
        for number in range(options.first, options.first + options.count):
            spec = cron("* * * * * *") if number % 2 else every(seconds=options.seconds)
            app.schedule(str(number), spec, Publish(BEATS, number))
        return app


class Watched(Layer):
    def __init__(self, inner: Any, worker: ScheduleApp) -> None:
        super().__init__(inner)
        self._worker = worker


class WatchedBackend(Watched):
    @property
    def broker(self) -> Any:
        return WatchedBroker(self._inner.broker, self._worker)

    @property
    def store(self) -> Any:
        store = self._inner.store
        return None if store is None else WatchedStore(store, self._worker)


class WatchedBroker(Watched):
    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        self._worker.at("sending")
        unrouted: Sequence[Outgoing] = await self._inner.publish(messages)
        self._worker.at("sent")
        return unrouted


class WatchedStore(Watched):
    """Knows a firing's steps by the keys that they read and write, from when something is due."""

    _fires = False

    async def scan(self, prefix: str, *, before: str | None = None, limit: int | None = None) -> Mapping[str, Entry]:
        self._worker.looks()
        found: Mapping[str, Entry] = await self._inner.scan(prefix, before=before, limit=limit)
        self._fires = before is not None and bool(found)
        return found

    async def get(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        found: Mapping[str, Entry] = await self._inner.get(keys)
        if self._fires:
            self._worker.at("read")
        return found

    async def write(self, writes: Sequence[Write]) -> Sequence[bool]:
        done: Sequence[bool] = await self._inner.write(writes)
        if self._fires and any(done):
            claims = writes[0].key.startswith(KEYS.claim(""))
            self._worker.at("claimed" if claims else "moved")
        return done


if __name__ == "__main__":

    async def work() -> None:
        await main(ScheduleApp(sys.argv[1], msgspec.json.decode(sys.argv[2], type=ScheduleOptions)))

    asyncio.run(work())
