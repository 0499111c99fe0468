"""A firing is read and claimed shortly before it is due: what happens between then and the due time counts."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from carteiro import Publish, at, every
from carteiro.schedules.book import Schedules
from carteiro.schedules.firing import AHEAD, LEASE
from carteiro.schedules.specs import At
from carteiro.testing import VirtualClock
from tests.e2e.tour.stage import soon
from tests.schedules.mortal import Process
from tests.unit.outage import later

BEATS = "beats"
DUE = 10.0
"""Seconds from the start at which the schedule of each test is due."""


class Scene:
    """Processes of one app, in memory and under one clock, and what they have sent."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.start = self.clock.time()
        self.sent: list[tuple[float, str]] = []
        """When, in seconds from the start, and what."""
        self.claims: list[float] = []
        """When one was asked for."""
        self._url = f"memory://{uuid.uuid4().hex}"
        self._processes: list[Process] = []

    async def process(self) -> Process:
        """One that fires what is added."""
        process = Process(self._url, self.clock)
        process.mortal.fates = self._note
        process.app.schedule("far", every(days=1000), Publish("far", 1))
        self._processes.append(process)
        process.start()
        await soon(process.app.ready())
        return process

    def at(self, seconds: float) -> At:
        return at(datetime.fromtimestamp(self.start + seconds, UTC))

    async def until(self, seconds: float) -> None:
        await later(self.clock, self.start + seconds - self.clock.time())

    async def close(self) -> None:
        for process in self._processes:
            await soon(process.end())

    def _note(self, call: str, args: Sequence[Any]) -> None:
        now = round(self.clock.time() - self.start, 3)
        if call == "publish":
            self.sent += ((now, message.body.decode()) for message in args[0])
        elif call == "write" and any(write.key.startswith("fired:") and write.value is not None for write in args[0]):
            self.claims.append(now)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    yield scene
    await scene.close()


async def test_what_is_due_was_claimed_before_and_is_sent_at_its_time(scene: Scene):
    process = await scene.process()
    await process.app.schedules.add("once", scene.at(DUE), Publish(BEATS, 1))

    await scene.until(DUE + 1)

    assert scene.claims == [DUE - AHEAD]
    assert scene.sent == [(DUE, "1")]


async def pause(schedules: Schedules, scene: Scene) -> None:
    await schedules.pause("once")


async def pause_and_resume(schedules: Schedules, scene: Scene) -> None:
    await schedules.pause("once")
    await schedules.resume("once")


async def remove(schedules: Schedules, scene: Scene) -> None:
    assert await schedules.remove("once")


async def postpone(schedules: Schedules, scene: Scene) -> None:
    await schedules.add("once", scene.at(DUE + 3), Publish(BEATS, 1))


async def send_another(schedules: Schedules, scene: Scene) -> None:
    await schedules.add("once", scene.at(DUE), Publish(BEATS, 2))


async def fire(schedules: Schedules, scene: Scene) -> None:
    await schedules.fire("once")


@pytest.mark.parametrize(
    ("change", "sent"),
    [
        (pause, []),
        (pause_and_resume, [(DUE, "1")]),
        (remove, []),
        (postpone, [(DUE + 3, "1")]),
        (send_another, [(DUE, "2")]),
        (fire, [(DUE - AHEAD / 2, "1"), (DUE, "1")]),
    ],
)
async def test_what_is_changed_after_it_was_claimed_is_fired_as_it_is_now(
    scene: Scene, change: Callable[[Schedules, Scene], Awaitable[None]], sent: list[tuple[float, str]]
):
    process = await scene.process()
    await process.app.schedules.add("once", scene.at(DUE), Publish(BEATS, 1))
    await scene.until(DUE - AHEAD / 2)
    assert scene.claims

    await change(process.app.schedules, scene)
    await scene.until(DUE + 2 * LEASE)

    assert scene.sent == sent


@pytest.mark.parametrize("which", [0, 1])
async def test_whichever_process_stops_when_it_is_claimed_the_other_sends_it_at_its_time(scene: Scene, which: int):
    processes = [await scene.process() for _ in range(2)]
    await processes[0].app.schedules.add("once", scene.at(DUE), Publish(BEATS, 1))
    await scene.until(DUE - AHEAD / 2)
    assert len(scene.claims) == 2

    processes[which].app.stop()
    await scene.until(DUE + 2 * LEASE)

    assert scene.sent == [(DUE, "1")]


async def test_what_a_process_has_claimed_when_it_dies_another_sends_when_the_claim_is_over(scene: Scene):
    first = await scene.process()
    await first.app.schedules.add("once", scene.at(DUE), Publish(BEATS, 1))
    await scene.until(DUE - AHEAD / 2)
    first.kill()

    await scene.process()
    await scene.until(DUE + 2 * LEASE)

    assert scene.sent == [(DUE - AHEAD / 2 + LEASE, "1")]


async def test_what_was_claimed_long_before_it_can_be_sent_is_read_again(scene: Scene):
    """As by a machine that was asleep: by then it was missed."""
    process = await scene.process()
    await process.app.schedules.add("once", scene.at(DUE), Publish(BEATS, 1), misfire="skip")
    await scene.until(DUE - AHEAD / 2)
    assert scene.claims

    scene.clock.advance_to(scene.start + 40_000)
    await scene.until(50_000)

    assert scene.sent == []
    assert (await process.app.schedules.get("once")).next is None
