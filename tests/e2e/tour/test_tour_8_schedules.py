"""Part 8: schedules. What else they promise is in tests/schedules."""

import importlib
from collections.abc import Callable
from datetime import UTC, datetime
from types import ModuleType

import pytest

from carteiro import Message
from carteiro.testing import TestApp
from tests.e2e.tour.stage import Follower, Stage, follow

FUNCTIONS = "tasks.house.schedules"


async def told(follower: Follower, topic: str, type: str | None = None) -> Message:
    """The next message of this topic and type that was handled."""
    while True:
        handled = await follower.next()
        assert handled.error is None
        if handled.message.topic == topic and handled.message.headers.get("type") == type:
            return handled.message


async def test_the_tours_schedules_fire_where_its_worker_runs(
    stage: Stage, part: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
):
    schedules = part("schedules")
    house = follow(schedules.app)
    await stage.run(schedules.app)

    ticks = [(await told(house, "ticks")).body for _ in range(2)]
    fired = await schedules.app.schedules.fire("readings")
    readings = [(await told(house, "periodic")).body for _ in range(2)]
    await schedules.app.schedules.fire("cleanup")
    await told(house, "tasks.house.default", "cleanup")

    assert ticks == [b'"tick"', b'"tick"']
    assert sorted(readings) == [b'{"sensor":"hall","celsius":21.5}', b'{"sensor":"roof","celsius":21.5}']
    assert fired.startswith("readings@")
    assert "cleaned up" in capsys.readouterr().out


async def test_a_schedule_that_is_added_while_running_fires_once_at_its_time(
    stage: Stage, part: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
):
    schedules = part("schedules")
    house = follow(schedules.app)
    await stage.run(schedules.app)

    await schedules.while_running()
    message = await told(house, "tasks.house.default", "send_email")

    assert message.id.startswith(f"trial-ends@{round(schedules.when.timestamp() * 1000)}-")
    printed = capsys.readouterr().out
    assert f"trial-ends | at {schedules.when:%Y-%m-%dT%H:%M:%S}" in printed
    assert "cleanup | 0 2 * * * America/Sao_Paulo" in printed
    assert "your trial has ended, Ana" in printed
    assert await schedules.app.schedules.remove("trial-ends") is True
    assert "trial-ends" not in [one.name for one in await schedules.app.schedules.list()]


async def test_each_firing_happens_once_though_several_processes_run_the_schedules(
    stage: Stage, part: Callable[[str], ModuleType]
):
    first, second = part("schedules"), part("schedules")
    house = follow(first.app)
    second.app.middleware(house)
    await stage.run(first.app, second.app)

    fired = [(await told(house, FUNCTIONS, "tick")).id for _ in range(4)]

    dues = sorted(int(id.removeprefix("tick@").partition("-")[0]) for id in fired)
    assert dues == [dues[0] + 1000 * number for number in range(4)]


async def test_a_worker_can_leave_the_schedules_to_a_process_that_only_fires(
    stage: Stage, part: Callable[[str], ModuleType]
):
    worker, scheduler = part("schedules"), part("schedules")
    working, firing = follow(worker.app), follow(scheduler.app)
    await stage.run(worker.app, schedules=False)
    assert await worker.app.schedules.list() == []  # nobody has told the store what the code says

    await stage.run(scheduler.app, schedules="only")

    assert {(await firing.next()).message.topic for _ in range(2)} == {FUNCTIONS}
    assert {(await working.next()).message.topic for _ in range(2)} == {"ticks"}


async def test_the_tours_schedules_come_at_their_times():
    schedules = importlib.import_module("docs.tour.schedules")

    async with TestApp(schedules.app, start=datetime(2026, 1, 1, tzinfo=UTC)) as t:
        await t.advance(minutes=5)
        assert t.published("ticks") == ["tick"] * 300
        await schedules.app.schedules.pause("tick")
        await t.advance(hours=24)

        assert len(t.published("ticks")) == 300
        assert t.published("periodic") == [schedules.Reading("hall"), schedules.Reading("roof")] * 289
        assert (await schedules.app.schedules.get("cleanup")).last.due == datetime(2026, 1, 1, 5, tzinfo=UTC)


def test_the_tours_functions_are_still_the_functions_that_they_were():
    schedules = importlib.import_module("docs.tour.schedules")

    assert schedules.tick() == "tick"
