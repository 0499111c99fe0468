"""What comes late, or when it is nearly over, to the tasks of an app: in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import pytest

from carteiro import (
    Carteiro,
    ConfigurationError,
    InvalidBody,
    Limit,
    Message,
    NoResult,
    Retry,
    TaskCancelled,
    chain,
    group,
    set_progress,
    step,
    wait_for,
)
from carteiro.message import Write
from carteiro.ports.clock import SYSTEM_CLOCK
from carteiro.ports.registry import open_backend
from carteiro.tasks.records import task_key
from carteiro.tasks.unique import Locks
from carteiro.testing import TestApp
from tests.e2e.tour.stage import soon

ONCE = Retry(attempts=1)

# -- the alarm of a task that has waited for an event ------------------------------------------------------------------


async def test_the_alarm_of_a_task_that_got_its_event_does_nothing_when_the_result_is_long_forgotten():
    app = Carteiro("shop", "memory://", result_ttl="1h")
    done: list[str] = []

    def charge() -> None:
        done.append("charge")

    @app.task(waits_for=["paid", "packed"])
    async def work(order: int) -> None:
        await step("charge", charge)
        await wait_for("paid", key=str(order), timeout="7d")
        await wait_for("packed", key=str(order), timeout="1h")
        done.append("ship")

    async with TestApp(app) as t:
        await work.delay(7)
        await t.idle()
        await t.publish("paid", {}, key="7")
        await t.idle()
        await t.publish("packed", {}, key="7")
        await t.advance(days=8)

        assert done == ["charge", "ship"]
        assert t.dead() == []


async def test_the_alarm_of_a_task_that_has_failed_after_its_event_does_not_try_it_again():
    app = Carteiro("shop", "memory://", retry=ONCE)
    tried: list[int] = []

    @app.task(waits_for=["paid"])
    async def work(order: int) -> None:
        await wait_for("paid", key=str(order), timeout="1h")
        tried.append(order)
        raise ValueError(order)

    async with TestApp(app) as t:
        result = await work.delay(7)
        await t.idle()
        await t.publish("paid", {}, key="7")
        await t.advance(hours=2)

        assert tried == [7]
        assert len(t.dead()) == 1
        assert await result.status() == "failed"


# -- a store that has changed ------------------------------------------------------------------------------------------


async def test_a_task_that_was_cancelled_as_it_ended_is_out_of_its_queue_without_its_lease_running_out():
    app = Carteiro("shop", "memory://", lease="1h")

    @app.task
    async def work() -> None:
        await app.tasks.result(work_id).cancel()  # too late for it to be interrupted, and before its end is written

    work_id = "the-one"
    async with TestApp(app) as t:
        result = await work.apply_async(id=work_id)
        await t.advance("10s")

        with pytest.raises(TaskCancelled):
            await result.get(timeout=1)
        assert t.groups()["tasks.shop.default", "shop"].in_flight == 0


async def test_a_record_that_cannot_be_read_fails_the_task_and_is_not_written_over():
    app = Carteiro("shop", "memory://", retry=ONCE)

    @app.task
    async def work() -> None: ...

    async with TestApp(app) as t:
        store = app.connection.store
        assert store is not None
        await store.write([Write(task_key("the-one"), b"\xc1")])
        await work.apply_async(id="the-one")
        await t.advance(hours=1)

        (letter,) = t.dead()
        assert "restore the store" in letter.history[-1].error
        assert (await store.get([task_key("the-one")]))[task_key("the-one")].value == b"\xc1"


async def test_who_was_long_in_saying_that_a_unique_task_is_sent_says_nothing_of_the_next_one():
    backend = open_backend("memory://", clock=SYSTEM_CLOCK)
    store = backend.store
    assert store is not None
    await backend.broker.connect()
    try:
        locks = Locks(store, SYSTEM_CLOCK)
        first = await locks.take("unique:work:", "first", None)
        await store.write([Write("unique:work:", None)])  # sent, run and over
        second = await locks.take("unique:work:", "second", None)
        await locks.sent("unique:work:", first, None)
        await locks.sent("unique:work:", second, None)

        assert (await locks.take("unique:work:", "third", None)).id == "second"
    finally:
        await backend.broker.close()


# -- stopping ----------------------------------------------------------------------------------------------------------


async def test_what_waits_for_a_seat_does_not_begin_when_the_worker_stops():
    app = Carteiro("shop", "memory://", retry=Retry(attempts=2))
    began: list[int] = []
    running, gate = asyncio.Event(), asyncio.Event()

    @app.task
    async def work(number: int) -> None:
        began.append(number)
        running.set()
        await gate.wait()

    async with app:
        worker = asyncio.create_task(app.run(concurrency=1))
        await soon(app.ready())
        for number in range(3):
            await work.delay(number)
        await soon(running.wait())
        app.stop()
        await stopping(app)
        gate.set()
        await soon(worker)

    assert began == [0]


async def test_a_queue_that_is_found_while_the_worker_stops_is_left_to_the_next():
    app = Carteiro("shop", "memory://")
    ran: list[int] = []
    running, gate = asyncio.Event(), asyncio.Event()

    @app.task
    async def slow() -> None:
        running.set()
        await gate.wait()

    @app.task
    async def quick(number: int) -> None:
        ran.append(number)

    async with app:
        worker = asyncio.create_task(app.run())
        await soon(app.ready())
        await slow.delay()
        await soon(running.wait())
        app.stop()
        await stopping(app)
        await quick.apply_async((1,), queue="fresh")
        for _ in range(50):
            await asyncio.sleep(0)
        gate.set()
        await soon(worker)
        result = await quick.apply_async((2,), queue="fresh")
        for _ in range(50):
            await asyncio.sleep(0)
        assert ran == []

        worker = asyncio.create_task(app.run())
        await result.get(timeout=10)
        assert ran == [1, 2]
        app.stop()
        await soon(worker)


async def test_a_worker_for_one_task_queue_hears_the_events_that_its_tasks_wait_for():
    app = Carteiro("shop", "memory://")
    heard = asyncio.Event()

    @app.middleware
    async def seen(message: Message, call_next: Callable[[Message], Awaitable[Any]]) -> Any:
        try:
            return await call_next(message)
        finally:
            heard.set()

    @app.task
    async def work() -> str:
        await wait_for("paid", key="7", timeout="1h")
        return "paid"

    async with app:
        worker = asyncio.create_task(app.run(only=["default"]))
        await soon(app.ready())
        result = await work.delay()
        await soon(heard.wait())
        await app.publish("paid", {}, key="7")
        assert await result.get(timeout=10) == "paid"
        app.stop()
        await soon(worker)


async def test_a_run_that_is_forgotten_fails_for_who_waits_for_it():
    app = Carteiro("shop", "memory://", retry=ONCE)

    @app.task
    async def work(number: int = 0) -> int:
        return number

    async with TestApp(app) as t:
        result = await chain(work.s(1).set(countdown="1h"), work.s()).delay()
        store = app.connection.store
        assert store is not None
        await store.write([Write(key, None) for key in await store.scan("node:")])
        with pytest.raises(NoResult, match="nothing is known of the run"):
            await t.result(result)
        assert await result.status() == "failed"


# -- what is asked for -------------------------------------------------------------------------------------------------


async def test_a_chunk_is_one_call_to_a_limit_and_has_one_key():
    app = Carteiro("shop", "memory://", retry=ONCE)

    @app.task(limit=Limit(2, rate="100/s"))
    async def double(number: int) -> int:
        return number * 2

    @app.task(limit=Limit(2, per=lambda a: a.user))
    async def greet(number: int, user: str = "Ana") -> str:
        return f"{user} {number}"

    async with TestApp(app) as t:
        assert await t.result(await double.chunks(range(5), 2).delay()) == [[0, 2], [4, 6], [8]]
        assert await t.result(await greet.chunks(range(3), 2).delay()) == [["Ana 0", "Ana 1"], ["Ana 2"]]
        mixed = await greet.chunks([(1, "Ana"), (2, "Zoë")], 2).delay()
        with pytest.raises(InvalidBody, match="2 keys of its limit, Ana and Zoë"):
            await t.result(mixed)


async def test_a_run_of_the_tasks_of_two_apps_is_refused_also_where_their_names_are_alike():
    here, there = Carteiro("here", "memory://"), Carteiro("there", "memory://")
    mine = here.task(name="work")(_work)
    theirs = there.task(name="work")(_work_there)

    async with TestApp(here):
        for canvas in (chain(mine.s(), theirs.si()), mine.s().link(theirs.si()), mine.s().link_error(theirs.s())):
            with pytest.raises(ConfigurationError, match="another app's"):
                await canvas.delay()


async def test_a_step_may_be_a_builtin_that_says_nothing_of_its_parameters():
    app = Carteiro("shop", "memory://", retry=ONCE)
    done: list[int] = []

    @app.task
    async def work() -> int:
        await step("note", done.append, 1)
        return await step("count", len, done)

    async with TestApp(app) as t:
        assert await t.result(await work.delay()) == 1


async def test_a_result_that_looks_like_the_mark_of_a_failure_is_none():
    app = Carteiro("shop", "memory://")

    @app.task
    async def work() -> dict[str, int]:
        return {"$failed": 3}

    async with TestApp(app) as t:
        assert await t.result(await group(work.s()).delay()) == [{"$failed": 3}]


async def test_progress_in_any_kind_of_number_can_be_read():
    app = Carteiro("shop", "memory://")

    @app.task
    async def work() -> None:
        set_progress(Decimal("0.5"), 2)  # type: ignore[arg-type]  # a number all the same

    async with TestApp(app) as t:
        result = await work.delay()
        await t.idle()
        progress = await result.progress()
        assert progress is not None
        assert (progress.done, progress.total) == (0.5, 2.0)


async def test_results_that_are_kept_for_no_time_are_refused_where_they_are_declared():
    with pytest.raises(ConfigurationError, match="result=False"):
        Carteiro("shop", "memory://", result_ttl=0)


async def stopping(app: Carteiro) -> None:
    """Return when its worker begins nothing more."""
    for _ in range(50):
        if any(lane.stopping for worker in app.workers.values() for lane in worker.lanes.values()):
            return
        await asyncio.sleep(0)
    raise AssertionError("the worker goes on")


async def _work(value: object = None) -> None: ...


async def _work_there(value: object = None) -> None: ...
