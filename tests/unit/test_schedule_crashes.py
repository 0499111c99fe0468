"""Each due time is fired once, whenever processes die, freeze or start: in virtual time, all of it drawn at random.

`make soak` draws more of it: SOAK_EXAMPLES (2,000).
"""

from __future__ import annotations

import asyncio
import faulthandler
import itertools
import logging
import os
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from carteiro import Publish, cron, every
from carteiro.message import Delivery, Subscription
from carteiro.ports.registry import open_backend
from carteiro.schedules.firing import LEASE
from carteiro.schedules.specs import At, Spec, jittered
from carteiro.testing import VirtualClock
from tests.schedules.mortal import Fate, Process

EXAMPLES = 40
SOAK_EXAMPLES = int(os.environ.get("SOAK_EXAMPLES", "2000"))
BEATS = Subscription("beats", "audit", lease=1e6)
LENGTH = 30.0
"""Seconds for which something happens."""
LATE = 45.0
"""Seconds after which what is due was fired, however many of the fates below have met it."""
TURNS = 40
"""Of the event loop, in which all that can happen at one moment happens."""
START = datetime(2026, 1, 1, tzinfo=UTC).timestamp()


class Event(msgspec.Struct, frozen=True):
    """Something that a user does, `at` seconds from the start. `number` is the schedule's."""

    at: float
    do: Literal["pause", "resume", "add", "remove", "fire"]
    number: int
    spec: Spec | None = None


class Told(msgspec.Struct, frozen=True):
    """What befalls the process that makes the call of this number, of all of them."""

    call: int
    fate: Fate


specs = st.one_of(
    st.builds(every, st.sampled_from([0.5, 1.0, 2.5, 7.0])),
    st.builds(lambda length: every(length, jitter=length), st.sampled_from([1.0, 6.0])),
    st.sampled_from([cron("*/5 * * * * *"), cron("* * * * * *", jitter=0.5)]),
    st.builds(lambda after: At(START + after), st.floats(0.0, LENGTH, exclude_min=True)),
)
fates = st.builds(
    Told,
    st.integers(1, 200),
    st.builds(
        Fate, st.sampled_from(["before", "after"]), st.none() | st.sampled_from([0.2, LEASE - 1, LEASE + 1, 9.0])
    ),
)
events = st.builds(
    Event,
    st.integers(1, int(LENGTH) - 1).map(lambda second: second + 0.13),
    st.sampled_from(["pause", "resume", "fire", "add", "add", "remove"]),
    st.integers(0, 3),
    specs,
)


class Life:
    """One schedule, from the moment at which it was added: when it was, and was not, to be fired."""

    def __init__(self, number: int, spec: Spec, begun: float) -> None:
        self.number = number
        """In the body of what it sends."""
        self.spec = spec
        self.begun = begun
        self.ended: float | None = None
        self.pauses: list[tuple[float, float]] = []
        self.paused_at: float | None = None

    def must(self, name: str, until: float) -> set[int]:
        """The due times, in milliseconds, that were fired for certain: with time enough before what ended them."""
        ends = [pause for pause, _ in self.pauses] + [one for one in (self.ended, self.paused_at) if one is not None]
        return {
            _ms(due)
            for due, goes in self._all(name, until)
            if not any(start <= goes and due <= end for start, end in self.pauses)
            and not any(goes <= end < goes + LATE for end in ends)
            and (self.ended is None or goes < self.ended)
            and (self.paused_at is None or goes < self.paused_at)
        }

    def may(self, name: str, until: float) -> set[int]:
        return {_ms(due) for due, _ in self._all(name, until)}

    def _all(self, name: str, until: float) -> Iterator[tuple[float, float]]:
        due = self.spec.after(self.begun, self.begun)
        if isinstance(self.spec, At) and not name.startswith("code"):
            due = self.spec.when  # one that was added too late is late
        while due is not None and due <= until:
            yield due, jittered(self.spec, name, due)
            due = self.spec.after(due, self.begun)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


class World:
    """Some processes with the same code, and a user, who asks by one that never dies."""

    def __init__(self, specs: Sequence[Spec], fates: Sequence[Told]) -> None:
        self.clock = VirtualClock(datetime.fromtimestamp(START, UTC))
        self.url = f"memory://{uuid.uuid4().hex}"
        self.code = list(specs)
        self.lives: dict[str, list[Life]] = {}
        self.fired: set[str] = set()
        """The ids of what the user has fired."""
        self._bodies = itertools.count()
        self._fates = {one.call: one.fate for one in fates}
        self._calls = itertools.count(1)
        self._processes: list[Process] = []
        for number, spec in enumerate(specs):
            self._begin(f"code{number}", spec)

    def _begin(self, name: str, spec: Spec) -> Life:
        lives = self.lives.setdefault(name, [])
        if lives and lives[-1].ended is None:
            lives[-1].ended = self.clock.time()
        life = Life(next(self._bodies), spec, self.clock.time())
        lives.append(life)
        return life

    def process(self) -> Process:
        process = Process(self.url, self.clock)
        for number, spec in enumerate(self.code):
            body = self.lives[f"code{number}"][0].number
            process.app.schedule(f"code{number}", spec, Publish("beats", body), misfire="all")
        return process

    async def run(self, starts: Sequence[float], events: Sequence[Event]) -> list[Delivery]:
        """All that was sent, once it has ended well."""
        self._audit = open_backend(self.url, clock=self.clock).broker
        await self._audit.declare([BEATS])
        asking = self.process()
        async with asking.app:
            await asking.app.schedules.agree()
            living = [asyncio.create_task(self._live(start)) for start in starts]
            for event in sorted(events, key=lambda one: one.at):
                await self._until(START + event.at)
                await self._do(asking, event)
            await self._until(START + LENGTH)
            self._fates.clear()
            await self._until(START + LENGTH + LATE)
            for one in living:
                one.cancel()
            await asyncio.wait(living)
            for process in self._processes:
                await process.end()
            return await self._sent()

    async def _live(self, after: float) -> None:
        """A process, and after each that has died another."""
        await self.clock.sleep(after)
        while True:
            process = self.process()
            process.mortal.fates = self._fate
            self._processes.append(process)
            running = process.start()
            died = asyncio.ensure_future(process.mortal.died.wait())
            await asyncio.wait((running, died), return_when=asyncio.FIRST_COMPLETED)
            if not died.done():
                running.result()
                raise AssertionError("it ended by itself")
            await self.clock.sleep(0.7)

    def _fate(self, call: str, args: Sequence[Any]) -> Fate | None:
        return self._fates.get(next(self._calls))

    async def _do(self, asking: Process, event: Event) -> None:
        name, schedules, now = f"code{event.number}", asking.app.schedules, self.clock.time()
        if event.do == "add":
            assert event.spec is not None
            name = f"added{event.number}"
            life = self._begin(name, event.spec)
            await schedules.add(name, event.spec, Publish("beats", life.number), misfire="all")
        elif event.do == "remove":
            name = f"added{event.number}"
            if await schedules.remove(name):
                self.lives[name][-1].ended = now
        elif name in self.lives:
            life = self.lives[name][-1]
            if event.do == "pause":
                await schedules.pause(name)
                life.paused_at = life.paused_at or now
            elif event.do == "resume":
                await schedules.resume(name)
                if life.paused_at is not None:
                    life.pauses.append((life.paused_at, now))
                    life.paused_at = None
            else:
                self.fired.add(await schedules.fire(name))

    async def _until(self, moment: float) -> None:
        while True:
            for _ in range(TURNS):
                await asyncio.sleep(0)
            due = self.clock.next_due()
            if due is None or due > moment:
                break
            self.clock.advance_to(due)
        self.clock.advance_to(moment)

    async def _sent(self) -> list[Delivery]:
        consumer, found = self._audit.consume([BEATS]), list[Delivery]()
        inspector: Any = self._audit
        (status,) = [one for one in await inspector.groups() if (one.topic, one.group) == ("beats", "audit")]
        while len(found) < status.left:
            found += await consumer.fetch({BEATS: 1000})
        return found


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("carteiro")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def check(specs: Sequence[Spec], starts: Sequence[float], fates: Sequence[Told], events: Sequence[Event]) -> None:
    faulthandler.cancel_dump_traceback_later()  # shrinking takes long

    async def story() -> tuple[World, list[Delivery]]:
        world = World(specs, fates)
        return world, await world.run(starts, events)

    world, sent = asyncio.run(story())
    end = START + LENGTH
    by_schedule: Counter[tuple[str, int, int]] = Counter()
    for delivery in sent:
        id = delivery.message.id
        if id not in world.fired:
            name, _, rest = id.rpartition("@")
            by_schedule[name, int(delivery.message.body), int(rest.partition("-")[0])] += 1
    note("\n".join(f"sent: {one} {count}" for one, count in sorted(by_schedule.items())))

    assert max(by_schedule.values(), default=1) == 1, "a due time was fired twice"
    assert {delivery.message.id for delivery in sent} >= world.fired, "what the user fired was not sent"
    for name, lives in world.lives.items():
        for life in lives:
            found = {due for one, number, due in by_schedule if (one, number) == (name, life.number)}
            missing, strange = life.must(name, end) - found, found - life.may(name, end + LATE)
            assert not missing, f"{name} ({life.spec}) was not fired at {sorted(missing)}"
            assert not strange, f"{name} ({life.spec}) was fired at {sorted(strange)}, when it was not due"


starts = st.lists(st.sampled_from([0.0, 0.0, 0.3, 3.0]), min_size=1, max_size=3)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    specs=st.lists(specs, min_size=1, max_size=4),
    starts=starts,
    fates=st.lists(fates, max_size=5, unique_by=lambda one: one.call),
)
def test_each_due_time_is_fired_once_whoever_dies_or_freezes(
    specs: list[Spec], starts: list[float], fates: list[Told]
) -> None:
    check(specs, starts, fates, [])


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    specs=st.lists(specs, min_size=1, max_size=4),
    starts=starts,
    fates=st.lists(fates, max_size=3, unique_by=lambda one: one.call),
    events=st.lists(events, max_size=8),
)
def test_it_is_so_while_users_pause_resume_fire_add_and_remove(
    specs: list[Spec], starts: list[float], fates: list[Told], events: list[Event]
) -> None:
    check(specs, starts, fates, events)


@pytest.mark.soak
@settings(max_examples=SOAK_EXAMPLES, deadline=None)
@given(
    specs=st.lists(specs, min_size=1, max_size=6),
    starts=starts,
    fates=st.lists(fates, max_size=12, unique_by=lambda one: one.call),
    events=st.lists(events, max_size=12),
)
def test_soak(specs: list[Spec], starts: list[float], fates: list[Told], events: list[Event]) -> None:
    check(specs, starts, fates, events)
