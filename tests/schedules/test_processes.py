"""Any number of processes, which start together, die, freeze, or have clocks of their own: each firing is one."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from carteiro import Publish, at, chain, cron, every
from carteiro.ports.features import Capability
from carteiro.ports.registry import open_backend
from carteiro.tasks.canvas import Canvas
from tests.e2e.tour.stage import Stage, soon
from tests.faults.scene import MovedClock
from tests.schedules.mortal import Process
from tests.schedules.mortal import at as at_call
from tests.schedules.things import BEATS, Crowd, distances, due_of, hearing, value_of
from tests.tasks.things import got, once

NEVER = cron("0 0 29 2 *")
QUICK = every("100ms")


@pytest.fixture
async def crowd(stage: Stage) -> AsyncIterator[Crowd]:
    crowd = Crowd(stage)
    yield crowd
    await crowd.close()


def dedupes(stage: Stage) -> bool:
    return bool(open_backend(stage.url).broker.features[Capability.DEDUPE])


def firing_process(crowd: Crowd) -> Process:
    """One that fires what others add."""
    process = crowd.process()
    process.app.schedule("rare", NEVER, Publish("rare", 1))
    return process


async def due_soon(process: Process, what: Publish | Canvas | None = None, **options: Any) -> datetime:
    """Have it add a one-shot, and tell its due time."""
    due = datetime.fromtimestamp(process.app.clock.time() + 0.3, UTC)
    await process.app.schedules.add("once", at(due), what or Publish(BEATS, "once"), **options)
    return due


def in_a_moment(stage: Stage, seconds: float = 0.3) -> datetime:
    return datetime.fromtimestamp(stage.clock.time() + seconds, UTC)


# -- together --------------------------------------------------------------------------------------------------------


async def test_many_processes_fire_each_due_time_once(stage: Stage, crowd: Crowd):
    ear = await hearing(stage, BEATS)
    processes = [crowd.process() for _ in range(4)]
    for process in processes:
        for number in range(3):
            process.app.schedule(f"beat{number}", QUICK, Publish(BEATS, number))

    await asyncio.gather(*(crowd.start(process) for process in processes))
    await ear.many(45)

    assert Counter(ear.dues).most_common(1)[0][1] == 1
    for number in range(3):
        assert distances(sorted(due for due in ear.dues if due.name == f"beat{number}")) <= {100}


async def test_processes_that_start_at_the_same_moment_keep_one_schedule(stage: Stage, crowd: Crowd):
    processes = [crowd.process() for _ in range(5)]
    for process in processes:
        process.app.schedule("beat", every(hours=1), Publish(BEATS, 1))

    await asyncio.gather(*(crowd.start(process) for process in processes))

    listed = [await process.app.schedules.list() for process in processes]
    assert all(one == listed[0] for one in listed)
    assert [status.name for status in listed[0]] == ["beat"]


async def test_processes_whose_clocks_differ_fire_each_due_time_once(stage: Stage, crowd: Crowd):
    ear = await hearing(stage, BEATS)
    processes = [crowd.process(clock=MovedClock(offset)) for offset in (-3.0, 0.0, 2.0)]
    for process in processes:
        process.app.schedule("beat", QUICK, Publish(BEATS, 1))

    await crowd.start(*processes)
    await ear.many(30)

    assert Counter(ear.dues).most_common(1)[0][1] == 1
    assert distances(sorted(ear.dues)) == {100}


async def test_a_process_that_comes_or_stops_while_others_fire_loses_and_doubles_nothing(stage: Stage, crowd: Crowd):
    ear = await hearing(stage, BEATS)
    stays = crowd.process()
    stays.app.schedule("beat", QUICK, Publish(BEATS, 1))
    await crowd.start(stays)
    for _ in range(3):
        comes = crowd.process()
        comes.app.schedule("beat", QUICK, Publish(BEATS, 1))
        await crowd.start(comes)
        await ear.many(4)
        comes.app.stop()
        await soon(comes.end())
    await ear.many(5)

    assert Counter(ear.dues).most_common(1)[0][1] == 1
    assert distances(sorted(ear.dues)) == {100}


async def test_a_stop_in_the_middle_of_a_firing_finishes_it(stage: Stage):
    ear, app = await hearing(stage, BEATS), stage.app()
    sending, may_send = asyncio.Event(), asyncio.Event()

    @app.publish_middleware
    async def slowly(message: Any, call_next: Any) -> None:
        sending.set()
        await may_send.wait()
        await call_next(message)

    app.schedule("rare", NEVER, Publish("rare", 1))
    await stage.run(app)
    await app.schedules.add("once", at(in_a_moment(stage)), Publish(BEATS, "once"))
    await soon(sending.wait())
    stopping = asyncio.create_task(stage.stop(app))
    may_send.set()
    await stopping

    assert due_of((await ear.next()).id).name == "once"
    async with app:
        assert (await app.schedules.get("once")).count == 1


# -- dying -----------------------------------------------------------------------------------------------------------

DEATHS = {
    "before it claims": lambda: at_call("write", "before", "fired:"),
    "when it has claimed": lambda: at_call("write", "after", "fired:"),
    "before it sends": lambda: at_call("publish", "before", BEATS),
    "when it has sent": lambda: at_call("publish", "after", BEATS),
    "before it moves the record": lambda: at_call("write", "before", "due:"),
}


@pytest.mark.usefixtures("short_claims")
@pytest.mark.parametrize("when", DEATHS)
async def test_what_a_process_has_begun_and_dies_another_fires(stage: Stage, crowd: Crowd, when: str):
    ear = await hearing(stage, BEATS)
    victim, heir = firing_process(crowd), firing_process(crowd)
    await crowd.start(victim)
    due = await due_soon(victim)
    victim.mortal.fates = DEATHS[when]()
    await soon(victim.mortal.died.wait())

    await crowd.start(heir)
    first = await ear.next()
    await until_count(heir, 1)

    assert due_of(first.id) == ("once", round(due.timestamp() * 1000))
    assert {message.id for message in ear.heard} == {first.id}
    if dedupes(stage) or when not in ("when it has sent", "before it moves the record"):
        assert len(ear.heard) == 1


async def until_count(process: Process, count: int, name: str = "once") -> None:
    async def look() -> bool:
        return (await process.app.schedules.get(name)).count >= count

    await once(look)


@pytest.mark.usefixtures("short_claims")
@pytest.mark.parametrize("when", ["when it has claimed", "before it sends"])
async def test_a_process_that_is_held_up_for_longer_than_its_claim_sends_nothing_twice(
    stage: Stage, crowd: Crowd, when: str
):
    ear = await hearing(stage, BEATS, "later")
    frozen, other = firing_process(crowd), firing_process(crowd)
    await crowd.start(frozen)
    await due_soon(frozen)
    call, fate = {
        "when it has claimed": ("write", at_call("write", "after", "fired:", frozen=2.5)),
        "before it sends": ("publish", at_call("publish", "before", BEATS, frozen=2.5)),
    }[when]
    frozen.mortal.fates = fate
    await called(frozen, call)

    await crowd.start(other)
    await until_count(other, 1)
    await other.app.schedules.add("later", at(in_a_moment(stage, 3.0)), Publish("later", 1))
    while (await ear.next()).topic != "later":
        pass

    assert [message.topic for message in ear.heard] == [BEATS, "later"]


async def called(process: Process, name: str, *, since: int = 0) -> None:
    async def look() -> bool:
        return name in process.mortal.calls[since:]

    await once(look)


@pytest.mark.usefixtures("short_claims")
@pytest.mark.parametrize("when", ["lock", "publish", "sent"])
async def test_a_unique_task_whose_sender_dies_is_sent_by_another(stage: Stage, crowd: Crowd, when: str):
    ran: list[int] = []
    victim, heir = processes = [firing_process(crowd) for _ in range(2)]
    for process in processes:

        @process.app.task(unique=True)
        async def work() -> int:
            ran.append(1)
            return 7

    await crowd.start(victim)
    await due_soon(victim, victim.app.tasks["work"].s())
    victim.mortal.fates = {
        "lock": at_call("write", "after", "unique:"),
        "publish": at_call("publish", "before", "tasks."),
        "sent": at_call("publish", "after", "tasks."),
    }[when]
    await soon(victim.mortal.died.wait())

    await crowd.start(heir, schedules=True)
    await until_count(heir, 1)

    last = (await heir.app.schedules.get("once")).last
    assert last is not None
    assert await got(heir.app.tasks.result(last.id)) == 7
    assert ran == [1]


@pytest.mark.usefixtures("short_claims")
@pytest.mark.parametrize("overlap", ["allow", "skip", "queue"])
async def test_a_run_that_is_over_when_another_process_sends_it_again_is_started_once_and_holds_up_nothing(
    stage: Stage, crowd: Crowd, overlap: Any
):
    ran: list[int] = []
    victim, heir, worker = processes = [crowd.process() for _ in range(3)]
    for process in processes:

        @process.app.task
        async def work(number: int) -> int:
            ran.append(number)
            return number + 1

        process.app.schedule("once", every("800ms"), chain(work.s(1), work.s()), overlap=overlap)
    await crowd.start(worker, schedules=False)
    await crowd.start(victim)
    victim.mortal.fates = at_call("write", "before", "due:")
    await soon(victim.mortal.died.wait())
    assert await soon(worker.app.tasks.run(victim.mortal.sent[0]).get()) == 3

    await crowd.start(heir)
    await until_count(heir, 3)
    last = (await heir.app.schedules.get("once")).last

    assert last is not None
    assert last.outcome != "skipped"
    assert await soon(worker.app.tasks.run(last.id).get()) == 3
    assert len(ran) % 2 == 0
    assert ran.count(1) == ran.count(2) == len({*victim.mortal.sent, *heir.mortal.sent})


# -- changed while it is fired ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("short_claims")
@pytest.mark.parametrize("change", ["fire", "pause", "replace", "deploy"])
async def test_what_somebody_changes_while_it_is_being_fired_is_fired_once(stage: Stage, crowd: Crowd, change: str):
    ear, app = await hearing(stage, BEATS, "later"), stage.app()
    process, due = firing_process(crowd), in_a_moment(stage, 2.0)
    if change == "deploy":
        process.app.schedule("once", at(due), Publish(BEATS, "once"))
    await crowd.start(process)
    if change != "deploy":
        due = await due_soon(process)
    process.mortal.fates = at_call("publish", "after", BEATS, frozen=0.4)
    fired = []
    async with app:
        schedules = app.schedules
        await called(process, "publish")

        if change == "fire":
            fired.append(await schedules.fire("once"))
        elif change == "pause":
            await schedules.pause("once")
        elif change == "replace":
            await schedules.add("once", at(due), Publish(BEATS, "another"))
        else:
            app.schedule("rare", NEVER, Publish("rare", 1))
            app.schedule("once", at(due), Publish(BEATS, "another"))
            await schedules.agree()
        await schedules.add("later", at(in_a_moment(stage, 2.0)), Publish("later", 1))  # when claims would be over
        if change == "pause":
            await called(process, "changed", since=len(process.mortal.calls))
            await schedules.resume("once")
        while (await ear.next()).topic != "later":
            pass

    firings = [message for message in ear.heard if message.topic == BEATS and message.id not in fired]
    assert [value_of(message) for message in firings] == ["once", *(["another"] if change == "replace" else [])]
    assert len(ear.heard) == 1 + len(firings) + len(fired)
