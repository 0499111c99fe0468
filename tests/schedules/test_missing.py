"""What was missed while everything was down, and what is due while the one before is not over."""

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from carteiro import Carteiro, Publish, Retry, at, chain, every
from carteiro.testing import TestApp, VirtualClock
from tests.e2e.tour.stage import Stage, soon
from tests.schedules.mortal import Process
from tests.schedules.things import BEATS, due_of
from tests.tasks.things import Gate, once
from tests.unit.outage import later

MINUTES = 60.0


class Downtime:
    """An app that fires, is stopped for a while and fires again, in virtual time on the broker in memory."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.url = f"memory://{uuid.uuid4().hex}"
        self.start = self.clock.time()
        self.sent: list[float] = []
        """The due times, in seconds from the start."""

    async def up(self, length: float, **options: Any) -> None:
        """Fire every five minutes, for so many seconds."""
        process = Process(self.url, self.clock)
        process.app.schedule("beat", options.pop("spec", every(minutes=5)), Publish(BEATS, 1), **options)
        process.start()
        await later(self.clock, length)
        self.sent += (due_of(id).due / 1000 - self.start for id in process.mortal.sent)
        await process.end()

    async def down(self, length: float) -> None:
        await later(self.clock, length)

    @property
    def minutes(self) -> list[float]:
        return [due / 60 for due in self.sent]


@pytest.mark.parametrize(
    ("misfire", "minutes"),
    [
        pytest.param("skip", [5, 35], id="skip"),
        pytest.param("once", [5, 30, 35], id="once"),
        pytest.param("all", [5, 10, 15, 20, 25, 30, 35], id="all"),
    ],
)
async def test_what_was_missed_while_all_was_down_is_fired_as_misfire_says(misfire: Any, minutes: list[float]):
    here = Downtime()
    await here.up(6 * MINUTES, misfire=misfire)
    await here.down(26 * MINUTES)
    await here.up(5 * MINUTES, misfire=misfire)

    assert here.minutes == minutes


@pytest.mark.parametrize("misfire", ["skip", "once", "all"])
async def test_what_is_only_late_is_fired_in_any_case(misfire: Any):
    here = Downtime()
    await here.up(4 * MINUTES, misfire=misfire)
    await here.down(1.5 * MINUTES)
    await here.up(5 * MINUTES, misfire=misfire)

    assert here.minutes == [5, 10]


async def test_what_is_older_than_max_age_is_not_fired_though_all_are_to_be():
    here = Downtime()
    await here.up(6 * MINUTES, misfire="all", max_age="13m")
    await here.down(26 * MINUTES)
    await here.up(5 * MINUTES, misfire="all", max_age="13m")

    assert here.minutes == [5, 20, 25, 30, 35]  # at 32 minutes those of 20, 25 and 30 are young enough


async def test_a_backlog_of_thousands_is_fired_in_order_and_each_once():
    here = Downtime()
    await here.up(1, spec=every(seconds=1), misfire="all")
    await here.down(3000)
    await here.up(10, spec=every(seconds=1), misfire="all")

    assert here.sent == [float(second) for second in range(1, 3012)]


@pytest.mark.parametrize(("misfire", "sent"), [("skip", []), ("once", [600.0]), ("all", [600.0])])
async def test_a_one_shot_that_was_missed_is_fired_unless_it_is_to_be_skipped(misfire: Any, sent: list[float]):
    here = Downtime()
    spec = at(datetime.fromtimestamp(here.start + 600, UTC))
    await here.up(60, spec=spec, misfire=misfire)
    await here.down(3600)
    await here.up(60, spec=spec, misfire=misfire)

    assert here.sent == sent


# -- overlap ---------------------------------------------------------------------------------------------------------


def shop(overlap: Any, *, workflow: bool = False, **options: Any) -> tuple[Carteiro, list[float]]:
    """An app whose task takes 25 seconds and is due each ten; it says when it begins, from the app's start on."""
    app = Carteiro("shop")
    began: list[float] = []

    @app.task(**options)
    async def slow(number: int = 0) -> int:
        if number == 0:
            began.append(app.clock.time())
        await app.clock.sleep(25 if not workflow or number else 0)
        return number + 1

    app.schedule("slow", every(seconds=10), chain(slow.s(), slow.s()) if workflow else slow.s(), overlap=overlap)
    return app, began


BEGINS = {
    "allow": [10, 20, 30, 40, 50, 60, 70, 80, 90, 100],
    "skip": [10, 40, 70, 100],
    "queue": [10, 35, 60, 85],
}


@pytest.mark.parametrize("workflow", [False, True], ids=["task", "workflow"])
@pytest.mark.parametrize("overlap", BEGINS)
async def test_while_the_one_before_is_not_over_the_next_is_as_overlap_says(overlap: str, workflow: bool):
    app, began = shop(overlap, workflow=workflow)

    async with TestApp(app) as t:
        start = t.now.timestamp()
        await t.advance(seconds=105)

        assert [moment - start for moment in began] == BEGINS[overlap]


@pytest.mark.parametrize(("overlap", "times"), [("skip", 5), ("queue", 6)])
async def test_after_a_task_that_has_failed_the_next_one_is_sent(overlap: Any, times: int):
    app = Carteiro("shop", retry=Retry(attempts=1))
    began: list[float] = []

    @app.task
    async def slow() -> None:
        began.append(app.clock.time())
        await app.clock.sleep(15)
        raise ValueError("no")

    app.schedule("slow", every(seconds=10), slow.s(), overlap=overlap)
    async with TestApp(app) as t:
        await t.advance(seconds=95)

    assert len(began) == times


async def test_after_a_task_that_has_expired_the_next_one_is_sent():
    app = Carteiro("shop")
    app.task_queue("default", concurrency=1)
    began: list[float] = []

    @app.task
    async def hog() -> None:
        await app.clock.sleep(35)

    @app.task(expires=5)
    async def slow() -> None:
        began.append(app.clock.time())

    app.schedule("slow", every(seconds=10), slow.s(), overlap="skip")
    async with TestApp(app) as t:
        start = t.now.timestamp()
        await hog.delay()
        await t.advance(seconds=65)

        assert [moment - start for moment in began] == [40, 50, 60]


async def test_of_what_is_skipped_the_status_says_so():
    app, _ = shop("skip")
    async with TestApp(app) as t:
        await t.advance(seconds=25)

        status = await app.schedules.get("slow")
    assert status.last is not None
    assert (status.last.outcome, status.count) == ("skipped", 1)


async def test_what_is_queued_waits_over_a_restart_and_is_not_missed():
    url, clock = f"memory://{uuid.uuid4().hex}", VirtualClock()
    began: list[float] = []

    def process() -> Process:
        process = Process(url, clock, lease="2h")

        @process.app.task
        async def slow() -> None:
            began.append(clock.time())
            await clock.sleep(200)

        process.app.schedule("slow", every(seconds=100), slow.s(), overlap="queue", misfire="skip")
        return process

    start = clock.time()
    worker = process()
    worker.start(schedules=False)
    for _ in range(4):
        scheduler = process()
        scheduler.start()
        await later(clock, 205)
        await scheduler.end()
    await worker.end()

    assert [moment - start for moment in began] == [100, 300, 500, 700]


async def test_one_that_replaces_another_does_not_wait_for_the_task_of_that():
    app, began = shop("allow")
    slow = app.tasks.tasks["slow"]
    async with TestApp(app) as t:
        await app.schedules.pause("slow")
        await app.schedules.add("added", every(seconds=10), slow.s(0), overlap="queue")
        await t.advance(seconds=25)
        assert len(began) == 1

        await app.schedules.add("added", every(seconds=1), Publish(BEATS, 1))
        await t.advance(seconds=5)

        assert len(t.messages(BEATS)) == 5


async def test_what_is_fired_by_hand_holds_up_the_next_as_any_other(stage: Stage):
    app, gate = stage.app(), Gate()

    @app.task
    async def slow() -> str:
        await gate.through()
        return "done"

    app.schedule("slow", every("100ms"), slow.s(), overlap="skip")
    await stage.run(app)
    await soon(gate.began.get())

    async def skipped() -> bool:
        last = (await app.schedules.get("slow")).last
        return last is not None and last.outcome == "skipped"

    await once(skipped)
    count = (await app.schedules.get("slow")).count
    gate.open()
    await soon(gate.began.get())

    assert count == 1


async def test_on_every_broker_a_queued_one_is_sent_when_the_one_before_is_over(stage: Stage):
    app = stage.app()
    running: list[int] = []
    most: list[int] = []
    ended: asyncio.Queue[int] = asyncio.Queue()

    @app.task
    async def slow() -> None:
        running.append(1)
        most.append(len(running))
        await app.clock.sleep(0.25)
        running.pop()
        ended.put_nowait(1)

    app.schedule("slow", every("100ms"), slow.s(), overlap="queue")
    await stage.run(app)
    for _ in range(4):
        await soon(ended.get())

    assert set(most) == {1}


async def test_a_run_of_a_schedule_that_was_cancelled_holds_up_nothing():
    app, began = shop("queue", workflow=True)
    async with TestApp(app) as t:
        await t.advance(seconds=12)
        status = await app.schedules.get("slow")
        assert status.last is not None
        await app.tasks.run(status.last.id).cancel()
        await t.advance(timedelta(seconds=10))

        assert len(began) == 2
