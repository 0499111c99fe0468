"""Of unique tasks that are one, one is sent."""

import asyncio
from typing import Any

import pytest

from carteiro import BrokerUnavailable, Outgoing, Retry, Unique, constant
from tests.e2e.tour.stage import Stage, soon
from tests.tasks.things import AT_ONCE, ONCE, Gate, comes_to, got, once


async def test_while_a_unique_task_waits_or_runs_a_second_delay_returns_the_firsts_handle(stage: Stage):
    app = stage.app()
    gate = Gate()
    ran: list[int] = []

    @app.task(unique=True)
    async def work(number: int) -> int:
        ran.append(number)
        await gate.through()
        return number

    async with app:
        first = await work.delay(1)
        waiting = await work.delay(1)
        other = await work.delay(2)
        await stage.run(app)
        await soon(gate.began.get())
        running = await work.delay(1)
        gate.open()

        assert first.id == waiting.id == running.id
        assert other.id != first.id
        assert [await got(result) for result in (first, waiting, running, other)] == [1, 1, 1, 2]
    assert sorted(ran) == [1, 2]


async def test_after_a_unique_task_is_over_the_next_one_is_another(stage: Stage):
    app = stage.app()

    @app.task(unique=True, retry=ONCE)
    async def work(fails: bool) -> str:
        if fails:
            raise ValueError("no")
        return "done"

    await stage.run(app)
    ids = set()
    for _ in range(2):
        result = await work.delay(False)
        assert await got(result) == "done"
        ids.add(result.id)
        result = await work.delay(True)
        with pytest.raises(ValueError, match="no"):
            await got(result)
        ids.add(result.id)

    assert len(ids) == 4


async def test_after_a_unique_task_was_cancelled_the_next_one_is_another(stage: Stage):
    app = stage.app()
    gate = Gate()

    @app.task(unique=True)
    async def work() -> str:
        await gate.through()
        return "done"

    async with app:
        waiting = await work.delay()
        await waiting.cancel()
        first = await work.delay()
        assert first.id != waiting.id
        await stage.run(app)
        await soon(gate.began.get())
        await first.cancel()
        await soon(gate.cancelled.get())
        second = await work.delay()
        gate.open()

        assert second.id != first.id
        assert await got(second) == "done"


async def test_while_a_unique_task_waits_for_its_retry_it_is_the_one(stage: Stage):
    app = stage.app()
    ran: asyncio.Queue[int] = asyncio.Queue()

    @app.task(unique=True, retry=Retry(attempts=2, backoff=constant(0.3)))
    async def work() -> str:
        ran.put_nowait(1)
        if ran.qsize() == 1:
            raise ValueError("not yet")
        return "done"

    await stage.run(app)
    first = await work.delay()
    await comes_to(app, first, "retrying")

    assert (await work.delay()).id == first.id
    assert await got(first) == "done"


async def test_of_many_who_send_a_unique_task_at_once_all_get_one_handle(stage: Stage):
    apps = [stage.app(), stage.app()]
    ran: list[int] = []

    async def work() -> None:
        ran.append(1)

    tasks = [app.task(unique=True)(work) for app in apps]
    async with apps[0], apps[1]:
        results = await asyncio.gather(*(task.delay() for task in tasks for _ in range(10)))
        await stage.run(apps[0])
        await got(results[0])
        await stage.settled("tasks.shop.default")

    assert len({result.id for result in results}) == 1
    assert ran == [1]


async def test_what_is_unique_is_said_by_a_key_of_the_arguments_or_by_text(stage: Stage):
    app = stage.app()

    @app.task(unique=Unique(key=lambda a: a.user))
    async def by_user(user: int, text: str = "") -> str:
        return text

    @app.task(unique="the only one")
    async def only(number: int) -> int:
        return number

    @app.task
    async def free(number: int) -> int:
        return number

    async with app:
        assert (await by_user.delay(1, "a")).id == (await by_user.delay(1, "b")).id
        assert (await by_user.delay(1)).id != (await by_user.delay(2)).id
        assert (await only.delay(1)).id == (await only.delay(2)).id
        assert (await free.delay(1)).id != (await free.delay(1)).id
        one = await free.apply_async((1,), unique=True)
        assert (await free.apply_async((1,), unique=True)).id == one.id
        assert (await free.apply_async((2,), unique=True)).id != one.id
        assert (await free.apply_async((3,), unique="k")).id == (await free.apply_async((4,), unique="k")).id
        assert (await only.apply_async((5,), unique=False)).id != (await only.delay(6)).id


async def test_within_a_window_a_second_one_is_not_sent_though_the_first_is_over(stage: Stage):
    stage.hold_time()
    app = stage.app()
    ran: list[int] = []

    @app.task(unique=Unique(window="10m"))
    async def work() -> None:
        ran.append(1)

    await stage.run(app)
    first = await work.delay()
    await soon(stage.pass_until(first.get()))
    assert (await work.delay()).id == first.id

    async def is_another() -> bool:
        return (await work.delay()).id != first.id

    await stage.pass_until(once(is_another), step=30, most=900)
    await stage.pass_until((await work.delay()).get())
    assert len(ran) == 2


async def test_a_unique_task_that_could_not_be_sent_is_sent_by_the_next_who_tries(stage: Stage):
    app = stage.app()

    @app.task(unique=True)
    async def work() -> str:
        return "done"

    await stage.run(app)
    publisher = app.connection.publisher
    publish = publisher.publish

    async def away(*_: Any, **__: Any) -> None:
        raise BrokerUnavailable("the broker is away")

    publisher.publish = away  # type: ignore[method-assign]
    with pytest.raises(BrokerUnavailable):
        await work.delay()
    publisher.publish = publish  # type: ignore[method-assign]

    assert await got(await work.delay()) == "done"


async def test_a_copy_of_a_unique_task_that_is_over_does_not_free_the_next_one(stage: Stage):
    app = stage.app()
    gate = Gate()

    @app.task(unique=True)
    async def work() -> str:
        await gate.through()
        return "done"

    await stage.run(app)
    first = await work.delay()
    await soon(gate.began.get())
    assert app.worker is not None
    (held,) = [delivery.message for lane in app.worker.lanes.values() for delivery in lane.held]
    await first.cancel()
    await soon(gate.cancelled.get())
    await stage.settled("tasks.shop.default")
    second = await work.delay()
    await soon(gate.began.get())
    copy = Outgoing(held.id, held.topic, held.body, held.key, held.headers, held.correlation_id)
    await app.connection.publisher.publish(copy)
    worker = app.worker

    async def both_handled() -> bool:
        return worker.handled >= 2

    await once(both_handled)
    third = await work.delay()
    gate.open()

    assert second.id == third.id
    assert await got(third) == "done"


async def test_a_unique_task_that_keeps_no_result_is_freed_too(stage: Stage):
    app = stage.app()
    ran: asyncio.Queue[int] = asyncio.Queue()

    @app.task(unique=True, result=False, retry=Retry(attempts=2, backoff=AT_ONCE))
    async def work() -> None:
        ran.put_nowait(1)

    await stage.run(app)
    first = await work.delay()
    await soon(ran.get())
    await stage.settled("tasks.shop.default")
    second = await work.delay()
    await soon(ran.get())

    assert first.id != second.id
