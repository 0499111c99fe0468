"""A broker or a store that is away for a while: what is due is sent when it is back, and once."""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import cast

import pytest

from carteiro import Carteiro, Publish, at, cron, every
from carteiro.ports.broker import Backend
from carteiro.testing import VirtualClock
from tests.e2e.tour.stage import Stage, soon
from tests.schedules.mortal import BROKER, CALLS, STORE, Process
from tests.schedules.things import BEATS, Crowd, distances, due_of, hearing
from tests.tasks.things import once
from tests.unit.outage import later

NEVER = cron("0 0 29 2 *")


@pytest.fixture
async def crowd(stage: Stage) -> AsyncIterator[Crowd]:
    crowd = Crowd(stage)
    yield crowd
    await crowd.close()


def in_a_moment(stage: Stage, seconds: float) -> datetime:
    return datetime.fromtimestamp(stage.clock.time() + seconds, UTC)


async def tried(process: Process, calls: frozenset[str], *, times: int = 1) -> None:
    """It has made so many more of these calls."""
    before = len(process.mortal.calls)

    async def look() -> bool:
        return sum(one in calls for one in process.mortal.calls[before:]) >= times

    await once(look)


async def tried_for_long(processes: Sequence[Process]) -> None:
    """They have tried to send it while a few claims came and went: each does so some three times."""

    async def look() -> bool:
        return sum(len(process.mortal.sent) for process in processes) >= 10

    await once(look)


@pytest.mark.usefixtures("short_claims")
async def test_what_was_due_while_the_broker_was_away_is_sent_once_however_many_processes_tried(
    stage: Stage, crowd: Crowd
):
    """Also where the broker knows no ids: nobody goes on trying longer than its claim holds."""
    ear = await hearing(stage, BEATS, "later")
    processes = [crowd.process() for _ in range(3)]
    for process in processes:
        process.app.schedule("rare", NEVER, Publish("rare", 1))
    await crowd.start(*processes)
    for process in processes:
        process.mortal.away = BROKER
    await processes[0].app.schedules.add("once", at(in_a_moment(stage, 0.1)), Publish(BEATS, 1))
    await tried_for_long(processes)

    for process in processes:
        process.mortal.away = frozenset()
    await ear.next()
    await processes[0].app.schedules.add("later", at(in_a_moment(stage, 3.0)), Publish("later", 1))
    while (await ear.next()).topic != "later":
        pass

    assert [message.topic for message in ear.heard] == [BEATS, "later"]


async def _waits(process: Process) -> bool:
    """Whether it has noted what it has sent."""
    return process.mortal.calls[-1] == "changed"


@pytest.mark.usefixtures("short_claims")
@pytest.mark.parametrize("away", [BROKER, STORE, CALLS], ids=["broker", "store", "both"])
async def test_after_an_outage_each_due_time_of_it_is_sent(stage: Stage, crowd: Crowd, away: frozenset[str]):
    ear, process = await hearing(stage, BEATS), crowd.process()
    process.app.schedule("beat", every("200ms"), Publish(BEATS, 1))
    await crowd.start(process)
    await ear.many(2)

    await once(lambda: _waits(process))
    process.mortal.away = away
    await tried(process, away, times=3)
    process.mortal.away = frozenset()
    await ear.many(10)

    dues = sorted(set(ear.dues))
    assert distances(dues) == {200}
    assert Counter(ear.dues).most_common(1)[0][1] == 1


async def test_one_broker_that_is_away_holds_up_none_of_what_goes_to_another():
    clock, url = VirtualClock(), f"memory://{uuid.uuid4().hex}"
    good, bad = Process(url, clock), Process(f"{url}-events", clock)
    bad.mortal.away = BROKER
    app = Carteiro(
        "shop",
        brokers={"default": cast(Backend, good.mortal), "events": cast(Backend, bad.mortal)},
        clock=clock,
        breaker=None,
    )
    app.schedule("good", every(seconds=10), Publish(BEATS, 1))
    app.schedule("bad", every(seconds=10), Publish(BEATS, 1, broker="events"), misfire="all")
    running = asyncio.create_task(app.run(schedules="only"))
    await later(clock, 105)

    dues = [due_of(id) for id in good.mortal.sent]
    assert distances(dues) == {10_000}
    assert len(dues) == 10

    bad.mortal.away = frozenset()
    before = len(bad.mortal.sent)
    await later(clock, 20)
    late = {due_of(id) for id in bad.mortal.sent[before:]}
    assert len(late) >= 11
    app.stop()
    await later(clock, 10)
    await soon(running)


@pytest.mark.parametrize("away", [BROKER, STORE], ids=["broker", "store"])
async def test_a_stop_does_not_wait_until_an_outage_is_over(away: frozenset[str]):
    clock = VirtualClock()
    process = Process(f"memory://{uuid.uuid4().hex}", clock)
    process.app.schedule("beat", every(seconds=1), Publish(BEATS, 1))
    running = process.start()
    await later(clock, 5)
    process.mortal.away = away
    await later(clock, 60)

    process.app.stop()
    await later(clock, 3)

    await soon(running)
