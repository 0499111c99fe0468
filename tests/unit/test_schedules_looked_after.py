"""What is asked of schedules while nothing fires them, and processes that do nothing but fire."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from carteiro import Carteiro, Message, Publish, at, cron, every
from carteiro.testing import TestApp
from carteiro.testing.clock import VirtualClock

START = datetime(2026, 3, 1, tzinfo=UTC)
PING = Publish("pings", "ping")


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(START)


@pytest.fixture
async def app(clock: VirtualClock) -> AsyncIterator[Carteiro]:
    """Connected, and firing nothing."""
    async with Carteiro("shop", broker="memory://", clock=clock) as app:
        yield app


def later(clock: VirtualClock, **length: float) -> None:
    clock.advance_to(clock.time() + timedelta(**length).total_seconds())


async def test_the_next_times_begin_with_the_one_that_waits_to_be_fired(app: Carteiro, clock: VirtualClock):
    await app.schedules.add("hourly", cron("@hourly"), PING)
    later(clock, hours=5, minutes=30)
    hours = [time.hour for time in await app.schedules.upcoming("hourly", 3)]
    assert hours == [1, 6, 7]


async def test_the_next_times_of_a_paused_one_are_those_if_it_is_resumed_now(app: Carteiro, clock: VirtualClock):
    await app.schedules.add("hourly", cron("@hourly"), PING)
    await app.schedules.add("once", at(START + timedelta(hours=1)), PING)
    for name in ("hourly", "once"):
        await app.schedules.pause(name)
    later(clock, hours=5, minutes=30)
    assert [time.hour for time in await app.schedules.upcoming("hourly", 2)] == [6, 7]
    assert await app.schedules.upcoming("once") == [START + timedelta(hours=1)]
    await app.schedules.resume("hourly")
    assert [time.hour for time in await app.schedules.upcoming("hourly", 2)] == [6, 7]


async def test_those_that_are_due_first_are_told_without_the_others(app: Carteiro):
    for number in range(20):
        await app.schedules.add(f"in-{number}", at(START + timedelta(hours=1 + number)), PING)
    await app.schedules.pause("in-0")
    soonest = await app.schedules.soonest(2)
    assert [(one.name, one.next) for one in soonest] == [
        ("in-1", START + timedelta(hours=2)),
        ("in-2", START + timedelta(hours=3)),
    ]
    assert len(await app.schedules.soonest(50)) == 19


async def test_jitter_is_no_lateness():
    app = Carteiro("shop")
    app.schedule("ping", every(minutes=1, jitter="30s"), PING)
    async with TestApp(app) as t:
        await t.advance(minutes=5)
        last = (await app.schedules.get("ping")).last
        assert last is not None
        assert last.lateness == pytest.approx(0, abs=0.001)
        assert last.due - last.due.replace(second=0) > timedelta(0)
        await app.schedules.fire("ping")
        fired = (await app.schedules.get("ping")).last
        assert fired is not None
        assert (fired.lateness, fired.due) == (0, fired.at)


# -- only firing -------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def only_firing(app: Carteiro) -> AsyncIterator[None]:
    running = asyncio.create_task(app.run(schedules="only"))
    await app.ready()
    try:
        yield
    finally:
        app.stop()
        await running


def shop(folder: Path) -> Carteiro:
    return Carteiro("shop", broker=f"sqlite:///{folder}/shop.db")


async def test_who_only_fires_fires_what_is_added_to_an_app_without_schedules(tmp_path: Path):
    got = asyncio.Event()
    worker = shop(tmp_path)

    @worker.subscriber("pings")
    async def on_ping(ping: str) -> None:
        got.set()

    async with only_firing(shop(tmp_path)):
        running = asyncio.create_task(worker.run(schedules=False))
        await worker.ready()
        await worker.schedules.add("ping", every(milliseconds=100), PING)
        await asyncio.wait_for(got.wait(), 30)
        worker.stop()
        await running


async def test_who_only_fires_takes_up_no_queue_of_tasks_that_it_finds(tmp_path: Path):
    app = shop(tmp_path)
    fired = asyncio.Event()
    ran: list[str] = []

    @app.task
    async def remember(message: Message) -> None:
        ran.append(message.id)

    count = 0

    @app.scheduled(every(milliseconds=100))
    async def tick() -> None:
        nonlocal count
        count += 1
        if count == 3:
            fired.set()

    async with app:
        await remember.apply_async(queue="found-later")
        async with only_firing(app):
            await asyncio.wait_for(fired.wait(), 30)
            assert {lane.topic for worker in app.workers.values() for lane in worker.lanes} == {
                f"tasks.shop.schedules{level}" for level in ("", ".high", ".low")
            }
    assert ran == []
