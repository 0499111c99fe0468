"""What a schedule sends: messages with all that a publish can say, tasks, workflows, and what functions make."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import pytest

from carteiro import (
    Carteiro,
    Depends,
    Message,
    Publish,
    Retry,
    TaskResult,
    at,
    chain,
    chord,
    constant,
    cron,
    every,
    group,
)
from carteiro.schedules.specs import Spec, jittered
from carteiro.testing import TestApp
from tests.e2e.tour.stage import Stage, soon
from tests.schedules.things import BEATS, distances, due_of, hearing, value_of
from tests.tasks.things import got

NEVER = cron("0 0 29 2 *")
"""Not while a test runs: it is fired by hand."""


# -- when ------------------------------------------------------------------------------------------------------------


async def test_every_100_ms_each_due_time_is_sent_and_none_drifts(stage: Stage):
    ear, app = await hearing(stage, BEATS), stage.app()
    app.schedule("beat", every(0.1), Publish(BEATS, 1))

    await stage.run(app)
    dues = [due_of(message.id) for message in await ear.many(25)]

    assert distances(sorted(dues)) == {100}


async def test_cron_in_code_sends_at_whole_seconds(stage: Stage):
    ear, app = await hearing(stage, BEATS), stage.app()
    app.schedule("tick", cron("* * * * * *"), Publish(BEATS, 1))

    await stage.run(app)
    dues = [due_of(message.id) for message in await ear.many(2)]

    assert [one.due % 1000 for one in dues] == [0, 0]
    assert distances(dues) == {1000}


async def test_at_in_code_sends_once(stage: Stage):
    ear, app = await hearing(stage, BEATS), stage.app()
    when = datetime.fromtimestamp(stage.clock.time() + 2.0, UTC)
    app.schedule("once", at(when), Publish(BEATS, "now"))

    await stage.run(app)
    message = await ear.next()

    assert due_of(message.id) == ("once", round(when.timestamp() * 1000))
    status = await app.schedules.get("once")
    assert (status.next, status.count) == (None, 1)


@pytest.mark.parametrize("spec", ["cron", "every", "at"])
async def test_added_while_running_it_is_sent_too(stage: Stage, spec: str):
    ear, app = await hearing(stage, BEATS), stage.app()
    app.schedule("rare", NEVER, Publish(BEATS, "rare"))
    await stage.run(app)
    soon_due: dict[str, Spec] = {
        "cron": cron("* * * * * *"),
        "every": every("100ms"),
        "at": at(datetime.fromtimestamp(stage.clock.time() + 0.2, UTC)),
    }

    await app.schedules.add("added", soon_due[spec], Publish(BEATS, spec))
    message = await ear.next()

    assert due_of(message.id).name == "added"
    assert value_of(message) == spec


async def test_a_process_without_schedules_in_code_fires_those_that_others_add(stage: Stage):
    ear, app, other = await hearing(stage, BEATS), stage.app(), stage.app()

    @app.task
    async def work() -> None: ...

    await stage.run(app)
    async with other:
        await other.schedules.add("added", every("100ms"), Publish(BEATS, 1))

    assert due_of((await ear.next()).id).name == "added"


def test_the_jitter_of_a_firing_is_the_same_in_every_process():
    spec = every(60, jitter=30)

    assert jittered(spec, "beat", 1_772_323_260.0) == jittered(every(60, jitter=30), "beat", 1_772_323_260.0)
    assert jittered(spec, "beat", 1_772_323_260.0) == pytest.approx(1_772_323_263.0, abs=30.0)
    goes = {jittered(spec, name, 60.0 * number) - 60.0 * number for name in ("a", "b") for number in range(50)}
    assert len(goes) == 100
    assert all(0 <= one < 30 for one in goes)


# -- messages --------------------------------------------------------------------------------------------------------


async def test_a_message_has_all_that_a_publish_can_say(stage: Stage):
    ear, app = await hearing(stage, BEATS), stage.app()
    app.schedule(
        "beat",
        every("200ms"),
        Publish(BEATS, {"ok": True}, key="k", headers={"x-tenant": "br"}, type="beat", expires="10m"),
    )

    await stage.run(app)
    message = await ear.next()

    assert value_of(message) == {"ok": True}
    assert (message.key, message.type, message.headers["x-tenant"]) == ("k", "beat", "br")
    assert message.correlation_id == message.id
    expires = float(message.headers["expires-at"])
    assert expires == pytest.approx(due_of(message.id).due / 1000 + 600, abs=60)


async def test_a_delay_counts_from_each_firing(stage: Stage):
    app = stage.app()
    app.schedule("beat", NEVER, Publish(BEATS, 1, delay=3600))
    ear = await hearing(stage, BEATS)
    await stage.run(app)

    await app.schedules.fire("beat")

    status = await stage.until(BEATS, lambda of: of.delayed == 1, group="listener")
    assert status.waiting == 0
    assert ear.silent


async def test_a_message_can_go_to_another_broker_of_the_app(stage: Stage):
    events = f"memory://{stage.url.rpartition('/')[2].partition('?')[0]}-events"
    options: dict[str, Any] = {} if stage.store == stage.url else {"store": stage.store}
    app = Carteiro("shop", brokers={"default": stage.url, "events": events}, **options)
    heard: asyncio.Queue[Message] = asyncio.Queue()

    @app.subscriber(BEATS, broker="events")
    async def hear(message: Message) -> None:
        heard.put_nowait(message)

    app.schedule("beat", every("100ms"), Publish(BEATS, 1, broker="events"))
    await stage.run(app)

    assert due_of((await soon(heard.get())).id).name == "beat"


async def test_publish_middleware_sees_what_schedules_send(stage: Stage):
    ear, app = await hearing(stage, BEATS), stage.app()
    seen: list[str] = []

    @app.publish_middleware
    async def note(message: Any, call_next: Any) -> None:
        seen.append(message.id)
        await call_next(message)

    app.schedule("beat", every("100ms"), Publish(BEATS, 1))
    await stage.run(app)

    assert (await ear.next()).id in seen


# -- tasks and workflows ---------------------------------------------------------------------------------------------


async def test_a_task_is_sent_and_its_result_is_kept(stage: Stage):
    app = stage.app()

    @app.task
    async def double(number: int) -> int:
        return number * 2

    app.schedule("doubled", NEVER, double.s(4))
    await stage.run(app)

    id = await app.schedules.fire("doubled")

    assert await got(app.tasks.result(id)) == 8
    status = await app.schedules.get("doubled")
    assert status.last is not None
    assert (status.last.id, status.last.outcome) == (id, "succeeded")


async def test_a_task_has_the_options_of_its_call(stage: Stage):
    app = stage.app()
    seen: asyncio.Queue[Message] = asyncio.Queue()

    @app.task(expires="1h")
    async def work(message: Message) -> None:
        seen.put_nowait(message)

    app.schedule("work", NEVER, work.s().set(headers={"x-tenant": "br"}, key="k", queue="slow", priority="high"))
    await stage.run(app)
    await app.schedules.fire("work")
    message = await soon(seen.get())

    assert (message.headers["x-tenant"], message.key) == ("br", "k")
    assert message.topic.endswith(".slow.high"), "of a queue that only the schedule names"
    assert "expires-at" in message.headers


async def test_a_task_of_a_schedule_that_is_unique_is_sent_once_while_it_runs(stage: Stage):
    app = stage.app()
    began: asyncio.Queue[int] = asyncio.Queue()
    may_end = asyncio.Event()

    @app.task(unique=True)
    async def work() -> int:
        began.put_nowait(1)
        await may_end.wait()
        return 7

    app.schedule("work", NEVER, work.s())
    await stage.run(app)

    first = await app.schedules.fire("work")
    await soon(began.get())
    second = await app.schedules.fire("work")
    may_end.set()
    assert await got(app.tasks.result(first)) == 7
    third = await app.schedules.fire("work")

    assert first == second
    assert third != first
    assert await got(app.tasks.result(third)) == 7
    assert began.qsize() == 1


class Sums:
    """An app whose tasks say how often they ran."""

    def __init__(self, app: Carteiro) -> None:
        self.ran: list[str] = []

        @app.task
        async def add(a: int, b: int) -> int:
            self.ran.append(f"add {a} {b}")
            return a + b

        @app.task
        async def total(numbers: list[int]) -> int:
            self.ran.append("total")
            return sum(numbers)

        self.add, self.total = add, total


@pytest.mark.parametrize("kind", ["chain", "group", "chord"])
async def test_a_workflow_is_started_once_and_its_result_is_right(stage: Stage, kind: str):
    app = stage.app()
    sums = Sums(app)
    add, total = sums.add, sums.total
    canvas = {
        "chain": chain(add.s(1, 2), add.s(3), add.s(4)),
        "group": group(add.s(number, 1) for number in range(3)),
        "chord": chord((add.s(number, 1) for number in range(3)), total.s()),
    }[kind]
    app.schedule("sums", NEVER, canvas)
    await stage.run(app)

    run = app.tasks.run(await app.schedules.fire("sums"))

    assert await soon(run.get()) == {"chain": 10, "group": [1, 2, 3], "chord": 6}[kind]
    assert len(sums.ran) == {"chain": 3, "group": 3, "chord": 4}[kind]
    status = await app.schedules.get("sums")
    assert status.last is not None
    assert status.last.outcome == "succeeded"


async def test_each_firing_of_a_workflow_is_a_run_of_its_own(stage: Stage):
    app = stage.app()
    sums = Sums(app)
    app.schedule("sums", NEVER, chain(sums.add.s(1, 2), sums.add.s(3)))
    await stage.run(app)

    ids = [await app.schedules.fire("sums") for _ in range(3)]

    assert len(set(ids)) == 3
    assert [await soon(app.tasks.run(id).get()) for id in ids] == [6, 6, 6]
    assert len(sums.ran) == 6


# -- functions -------------------------------------------------------------------------------------------------------


def price() -> int:
    return 7


Price = Annotated[int, Depends(price)]


def declare_sync(app: Carteiro, **options: Any) -> None:
    @app.scheduled(NEVER, to=BEATS, name="made", **options)
    def made(found: Price) -> list[int]:
        return [found, 1]


def declare_async(app: Carteiro, **options: Any) -> None:
    @app.scheduled(NEVER, to=BEATS, name="made", **options)
    async def made(found: Price) -> list[int]:
        return [found, 1]


def declare_generator(app: Carteiro, **options: Any) -> None:
    @app.scheduled(NEVER, to=BEATS, name="made", **options)
    def made(found: Price) -> Iterator[Any]:
        yield [found, 1]
        yield None
        yield [found, 2]


def declare_async_generator(app: Carteiro, **options: Any) -> None:
    @app.scheduled(NEVER, to=BEATS, name="made", **options)
    async def made(found: Price) -> AsyncIterator[Any]:
        yield [found, 1]
        yield None
        yield [found, 2]


@pytest.mark.parametrize(
    ("declare", "sent"),
    [
        pytest.param(declare_sync, [[7, 1]], id="a function"),
        pytest.param(declare_async, [[7, 1]], id="an async function"),
        pytest.param(declare_generator, [[7, 1], [7, 2]], id="a generator"),
        pytest.param(declare_async_generator, [[7, 1], [7, 2]], id="an async generator"),
    ],
)
async def test_what_a_function_makes_is_published(stage: Stage, declare: Any, sent: list[Any]):
    ear, app = await hearing(stage, BEATS), stage.app()
    declare(app, key=lambda value: f"k{value[1]}", headers={"x-tenant": "br"}, type="made")
    await stage.run(app)

    await app.schedules.fire("made")
    messages = await ear.many(len(sent))

    assert sorted(map(value_of, messages)) == sent
    assert sorted((message.key, message.type, message.headers["x-tenant"]) for message in messages) == [
        (f"k{number}", "made", "br") for _, number in sent
    ]
    await stage.settled("tasks.shop.schedules")
    assert ear.silent


async def test_a_function_that_returns_nothing_publishes_nothing(stage: Stage):
    ear, app = await hearing(stage, BEATS), stage.app()

    @app.scheduled(NEVER, to=BEATS)
    def nothing() -> None:
        return None

    @app.scheduled(NEVER, to=BEATS)
    def something() -> str:
        return "something"

    await stage.run(app)
    result: TaskResult[Any] = app.tasks.result(await app.schedules.fire("nothing"))
    await got(result)
    await app.schedules.fire("something")

    assert value_of(await ear.next()) == "something"
    assert ear.silent


async def test_a_function_without_a_topic_only_runs(stage: Stage):
    app = stage.app()
    ran: asyncio.Queue[int] = asyncio.Queue()

    @app.scheduled(every("100ms"))
    async def work() -> str:
        ran.put_nowait(1)
        return "for nobody"

    await stage.run(app)

    assert await soon(ran.get()) == 1


async def test_a_function_is_fired_at_its_times_and_is_still_the_function_it_was(stage: Stage):
    ear, app = await hearing(stage, BEATS), stage.app()

    @app.scheduled(every("100ms"), to=BEATS)
    def tick() -> str:
        return "tick"

    await stage.run(app)

    assert tick() == "tick"
    assert {value_of(message) for message in await ear.many(3)} == {"tick"}


@pytest.mark.parametrize("kind", ["function", "generator"])
async def test_a_function_that_is_tried_again_publishes_once(stage: Stage, kind: str):
    ear, app = await hearing(stage, BEATS), stage.app()
    attempts: list[int] = []

    def fails_first() -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise ValueError("not yet")

    if kind == "function":

        @app.scheduled(NEVER, to=BEATS, name="made", retry=Retry(attempts=3, backoff=constant(0)))
        def function() -> int:
            fails_first()
            return 1
    else:

        @app.scheduled(NEVER, to=BEATS, name="made", retry=Retry(attempts=3, backoff=constant(0)))
        def generator() -> Iterator[int]:
            yield 1
            fails_first()

    await stage.run(app)
    await got(app.tasks.result(await app.schedules.fire("made")))

    assert value_of(await ear.next()) == 1
    await stage.settled("tasks.shop.schedules")
    assert ear.silent
    assert len(attempts) == 2


async def test_functions_run_only_where_schedules_are_fired(stage: Stage):
    ear = await hearing(stage, BEATS)
    deaf, scheduler = stage.app(), stage.app()
    ran_in: list[str] = []

    for app, place in ((deaf, "worker"), (scheduler, "scheduler")):

        @app.subscriber("orders")
        async def handle(order: int) -> None: ...

        @app.scheduled(every("100ms"), to=BEATS, name="tick")
        def tick(place: str = place) -> str:
            ran_in.append(place)
            return place

    await stage.run(deaf, schedules=False)
    await stage.run(scheduler, schedules="only")
    await ear.many(5)

    assert set(ran_in) == {"scheduler"}


# -- in virtual time -------------------------------------------------------------------------------------------------


async def test_under_testapp_a_year_of_a_daily_schedule_is_365_firings():
    app = Carteiro("shop")
    app.schedule("daily", cron("0 2 * * *"), Publish(BEATS, 1))

    async with TestApp(app) as t:
        await t.advance(days=365)

        dues = [due_of(message.id) for message in t.messages(BEATS)]
    assert len(dues) == 365
    assert distances(dues) == {86_400_000}


async def test_under_testapp_all_of_a_function_s_overrides_hold():
    app = Carteiro("shop")
    declare_async(app)

    async with TestApp(app, overrides={price: lambda: 9}) as t:
        await t.app.schedules.fire("made")
        await t.idle()

        assert t.published(BEATS) == [[9, 1]]


async def test_what_a_schedule_sends_expires_from_when_it_is_due():
    app = Carteiro("shop")
    app.schedule("beat", every(hours=1), Publish(BEATS, 1, delay="10m", expires=timedelta(minutes=5)))

    async with TestApp(app) as t:
        await t.advance(hours=1)
        (message,) = t.messages(BEATS)

        assert message.delay == 600
        assert float(message.headers["expires-at"]) == t.now.timestamp() + 900
