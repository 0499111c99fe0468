"""What the schedules of several processes send, as a test takes it, and what they ought to have sent."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest

from carteiro.errors import BrokerUnavailable
from carteiro.message import Action, Outcome, Subscription
from carteiro.ports.features import Capability
from carteiro.ports.registry import open_backend
from carteiro.ports.store import Store
from carteiro.schedules.records import Schedule, schedules_of
from carteiro.schedules.specs import dues
from tests.faults.processes import WorkerProcess
from tests.faults.scene import LOOK, PATIENCE, Scene
from tests.faults.schedule_worker import BEATS, KEYS, ScheduleOptions

HEARD = Subscription(BEATS, "audience", lease=PATIENCE)


class ScheduleScene:
    """One test's schedules. `options` are those of all its processes; what they fire is taken by the test itself."""

    def __init__(self, here: Scene, store: Store, options: ScheduleOptions) -> None:
        self.options = options
        self.store = store
        self.heard: list[str] = []
        """The ids of all that came, in order."""
        self._here = here
        self._more = asyncio.Event()

    # -- doing -------------------------------------------------------------------------------------------------------

    def some(self, **options: Any) -> ScheduleOptions:
        """The options of all its processes, and these."""
        return msgspec.structs.replace(self.options, **options)

    async def process(self, **options: Any) -> WorkerProcess:
        """Start one, and do not wait for it."""
        return await self._here.worker(self.some(**options), ready=False)

    async def listen(self) -> None:
        """Take what comes, for ever."""
        consumer = self._here.broker.consume([HEARD])
        while True:
            try:
                deliveries = await consumer.fetch({HEARD: 1000})
                self.heard += (delivery.message.id for delivery in deliveries)
                self._more.set()
                await consumer.settle([Outcome(delivery, Action.ACK) for delivery in deliveries])
            except BrokerUnavailable:  # someone is harming the server
                await asyncio.sleep(LOOK)

    # -- seeing ------------------------------------------------------------------------------------------------------

    def fired(self) -> dict[str, list[float]]:
        """The due times of which something came, by schedule, the earliest first."""
        dues = defaultdict[str, list[float]](list)
        for id in dict.fromkeys(self.heard):
            name, _, rest = id.partition("@")
            dues[name].append(int(rest.partition("-")[0]) / 1000)
        return {name: sorted(found) for name, found in dues.items()}

    @property
    def twins(self) -> int:
        """How many came beyond the first of their id."""
        return self._counts().total() - len(self._counts())

    async def until(self, holds: Callable[[Mapping[str, list[float]]], bool], what: str) -> None:
        """Return when that is so of what was `fired`."""

        async def come() -> None:
            while not holds(self.fired()):
                self._more.clear()
                await self._more.wait()

        await self._here.wait(come(), what, patience=2 * PATIENCE)

    async def until_each_fired(self, times: int) -> None:
        """Return when each of its schedules has fired so often in all."""
        count = self.options.count
        await self.until(
            lambda fired: sum(len(dues) >= times for dues in fired.values()) == count, f"{count} to fire {times} times"
        )

    async def until_each_fires(self, times: int) -> None:
        """Return when each of its schedules has fired so often from now on."""
        so_far = max(map(len, self.fired().values()), default=0)
        await self.until_each_fired(so_far + times)

    async def kept(self) -> dict[str, Schedule]:
        """The records."""
        found = schedules_of(await self.store.scan(KEYS.records))
        return {one.name: one for one in found}

    async def check(self, *, repeats: bool = False) -> None:
        """Of each schedule all due times from its first on have been sent, each under one id.

        None comes twice, unless `repeats` permits it, or the broker remembers no ids.
        """
        kept, fired = await self.kept(), self.fired()
        assert len(kept) == self.options.count
        wrong: list[str] = []
        for name, schedule in kept.items():
            expected = {schedule.id_at(due) for due in first_dues(schedule, len(fired.get(name, ())))}
            came = {id for id in self.heard if id.startswith(f"{name}@")}
            if came != expected:
                wrong.append(f"{name}: missing {expected - came}, not expected {came - expected}")
        if self.twins and not repeats and self._here.broker.features[Capability.DEDUPE]:
            wrong.append(f"twice: {[id for id, count in self._counts().items() if count > 1][:5]}")
        if wrong:
            pytest.fail("\n".join([f"{len(wrong)} are wrong:", *wrong[:10], await self._here.life()]))

    def _counts(self) -> Counter[str]:
        return Counter(self.heard)


def first_dues(schedule: Schedule, count: int) -> list[float]:
    """Its first due times, so many."""
    return list(islice(dues(schedule.definition.spec, schedule.anchor, schedule.anchor), count))


@contextlib.asynccontextmanager
async def schedule_scene(here: Scene, folder: Path, **options: Any) -> AsyncIterator[ScheduleScene]:
    """On RabbitMQ, which keeps no state, beside a store in a file."""
    url = None if here.backend.store is not None else f"sqlite:///{folder / 'store.db'}"
    store = here.backend.store or open_backend(url or "").store
    assert store is not None
    await store.connect()
    await here.broker.declare([HEARD])
    scene = ScheduleScene(here, store, ScheduleOptions(store=url, **options))
    listening = asyncio.create_task(scene.listen())
    try:
        yield scene
    finally:
        listening.cancel()
        await asyncio.wait([listening])
        await store.close()
