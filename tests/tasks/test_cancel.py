"""Cancelling is for good, wherever the task is."""

import asyncio
import contextlib
import os
import threading
from pathlib import Path

import pytest

from carteiro import Retry, TaskCancelled, constant, wait_for
from tests.e2e.tour.stage import PATIENCE, Stage, soon
from tests.tasks.things import Gate, comes_to, got, with_far


async def test_a_task_that_is_cancelled_before_any_worker_is_up_is_never_run(stage: Stage):
    app = stage.app()
    ran: list[str] = []

    @app.task
    async def work(name: str) -> None:
        ran.append(name)

    async with app:
        result = await work.delay("cancelled")
        assert await result.cancel() is True
        assert await result.status() == "cancelled"
        last = await work.delay("last")
    await stage.run(app)
    await got(last)
    await stage.settled("tasks.shop.default")

    assert ran == ["last"]
    assert await result.status() == "cancelled"
    with pytest.raises(TaskCancelled, match="`work` was cancelled"):
        await got(result)


async def test_a_task_that_is_cancelled_while_it_is_delayed_is_never_run(stage: Stage):
    app = stage.app()
    ran: list[str] = []

    @app.task
    async def work(name: str) -> None:
        ran.append(name)

    await stage.run(app)
    first = await work.apply_async(("cancelled",), countdown=0.5)
    assert await first.cancel() is True
    second = await work.apply_async(("goes on",), countdown=1)
    await got(second)
    await stage.settled("tasks.shop.default")

    assert ran == ["goes on"]


async def test_a_task_that_is_cancelled_while_it_waits_for_its_retry_is_not_tried_again(stage: Stage):
    app = stage.app()
    ran: asyncio.Queue[int] = asyncio.Queue()

    @app.task(retry=Retry(attempts=5, backoff=constant(0.5)))
    async def work() -> None:
        ran.put_nowait(1)
        raise ValueError("no")

    await stage.run(app)
    result = await work.delay()
    await soon(ran.get())
    await comes_to(app, result, "retrying")
    assert await result.cancel() is True
    await stage.settled("tasks.shop.default")

    assert ran.empty()
    assert await result.status() == "cancelled"


async def test_a_task_that_is_cancelled_while_it_waits_for_an_event_does_not_go_on(stage: Stage):
    app = stage.app()
    ran: list[str] = []

    @app.task(waits_for=["orders.paid"])
    async def work() -> None:
        await wait_for("orders.paid", timeout=1)
        ran.append("on")

    await stage.run(app)
    result = await work.delay()
    await comes_to(app, result, "waiting")
    assert await result.cancel() is True
    await app.publish("orders.paid", "yes")
    await stage.settled("orders.paid", "shop.waits")
    await stage.settled("tasks.shop.default")

    assert ran == []
    assert await result.status() == "cancelled"


async def test_a_task_that_runs_is_cancelled_at_its_next_await(stage: Stage):
    app = stage.app()
    gate = Gate()

    @app.task
    async def work() -> None:
        await gate.through("work")

    await stage.run(app)
    result = await work.delay()
    await soon(gate.began.get())
    waiting = asyncio.create_task(result.get())
    assert await result.cancel() is True

    assert await soon(gate.cancelled.get()) == "work"
    with pytest.raises(TaskCancelled):
        await soon(waiting)
    await stage.settled("tasks.shop.default")
    assert await result.status() == "cancelled"
    assert await result.cancel() is False


async def test_a_task_that_runs_on_another_worker_is_cancelled_by_whoever_has_its_id(stage: Stage):
    worker, other = stage.app(), stage.app()
    gate = Gate()

    @worker.task
    async def work() -> None:
        await gate.through()

    task = other.task(work.function)
    await stage.run(worker)
    async with other:
        result = await task.delay()
        await soon(gate.began.get())
        assert await other.tasks.result(result.id).cancel() is True
        await soon(gate.cancelled.get())


async def test_the_slot_of_a_task_that_was_cancelled_is_whole_afterwards(stage: Stage):
    app = stage.app()
    app.task_queue("default", concurrency=1)
    gate = Gate()

    @app.task
    async def deaf() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await gate.through()
        return "I end as I like"

    @app.task
    async def grouping() -> int:
        async with asyncio.TaskGroup() as many:  # it looks at whether its task was asked to be cancelled
            some = [many.create_task(asyncio.sleep(0, number)) for number in range(3)]
        return sum(one.result() for one in some)

    await stage.run(app)
    for _ in range(3):
        result = await deaf.delay()
        await soon(gate.began.get())
        assert await result.cancel() is True
        await soon(gate.cancelled.get())
        assert await got(await grouping.delay()) == 3
        assert await result.status() == "cancelled"


async def test_a_task_that_answers_its_cancel_with_an_error_stays_cancelled(stage: Stage):
    app = stage.app()
    gate = Gate()

    @app.task
    async def work() -> None:
        try:
            await gate.through()
        except asyncio.CancelledError:
            raise ValueError("I will not") from None

    await stage.run(app)
    result = await work.delay()
    await soon(gate.began.get())
    assert await result.cancel() is True
    await stage.settled("tasks.shop.default")

    assert await result.status() == "cancelled"
    assert await stage.dead() == []


async def test_what_a_thread_returns_after_its_task_was_cancelled_is_dropped(stage: Stage):
    app = stage.app()
    began, go, ended = asyncio.Event(), threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    @app.task
    def work() -> str:
        loop.call_soon_threadsafe(began.set)
        go.wait(PATIENCE)
        loop.call_soon_threadsafe(ended.set)
        return "done"

    await stage.run(app)
    result = await work.delay()
    await soon(began.wait())
    assert await result.cancel() is True
    await stage.settled("tasks.shop.default")
    go.set()
    await soon(ended.wait())

    assert await result.status() == "cancelled"


async def test_a_process_that_runs_a_task_that_is_cancelled_is_stopped(stage: Stage, tmp_path: Path):
    app = stage.app()
    with_far(app)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    spin = app.tasks["spin"]

    await stage.run(app)
    result = await spin.delay(str(fifo))
    pid = int(await soon(asyncio.to_thread(fifo.read_text)))
    assert await result.cancel() is True
    await stage.settled("tasks.shop.default")

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert await result.status() == "cancelled"
    assert await got(await app.tasks["pid"].delay()) != pid


async def test_cancelling_what_is_over_changes_nothing(stage: Stage):
    app = stage.app()

    @app.task
    async def work() -> int:
        return 7

    @app.task(retry=Retry(attempts=1))
    async def fails() -> None:
        raise ValueError("no")

    await stage.run(app)
    done, failed = await work.delay(), await fails.delay()
    await got(done)
    with pytest.raises(ValueError, match="no"):
        await got(failed)

    assert await done.cancel() is False
    assert await failed.cancel() is False
    assert await got(done) == 7
    assert await failed.status() == "failed"


async def test_a_cancel_and_an_end_at_the_same_time_agree_on_who_was_first(stage: Stage):
    app = stage.app()

    @app.task
    async def work(number: int) -> int:
        await asyncio.sleep(0)
        return number

    await stage.run(app)

    async def race(number: int) -> None:
        result = await work.delay(number)
        was_cancelled = await result.cancel()
        try:
            assert await result.get(timeout=PATIENCE) == number
            assert was_cancelled is False
        except TaskCancelled:
            assert was_cancelled is True

    await soon(asyncio.gather(*(race(number) for number in range(60))))
    await stage.settled("tasks.shop.default")


async def test_of_many_who_cancel_one_task_one_did_it(stage: Stage):
    app = stage.app()

    @app.task
    async def work() -> None: ...

    async with app:
        result = await work.delay()
        assert sorted(await asyncio.gather(*(result.cancel() for _ in range(10)))) == [False] * 9 + [True]
