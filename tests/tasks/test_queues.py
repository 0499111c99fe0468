"""Where tasks wait: queues, of which a call may name a new one, and the priorities within them."""

import asyncio

from tests.e2e.tour.stage import Stage, soon
from tests.tasks.things import Gate, got, once


async def test_a_queue_that_only_a_call_names_is_taken_up_by_workers_that_run(stage: Stage):
    workers = [stage.app(), stage.app()]
    for app in workers:

        @app.task
        async def work() -> int:
            return 7

    await stage.run(*workers)
    sender = stage.app()
    task = sender.task(work.function)

    async with sender:
        assert await got(await task.apply_async(queue="slow")) == 7
        assert await got(await task.apply_async(queue="slow", priority="high")) == 7
        assert await got(await task.apply_async(queue="slower")) == 7


async def test_a_queue_that_only_a_call_names_is_taken_up_by_workers_that_start_later(stage: Stage):
    app, sender = stage.app(), stage.app()

    @app.task
    async def work() -> int:
        return 7

    task = sender.task(work.function)
    async with sender:
        result = await task.apply_async(queue="slow")
    await stage.run(app)

    assert await got(await work.delay()) == 7
    async with sender:
        assert await got(result) == 7


async def test_what_is_urgent_passes_by_what_waits(stage: Stage):
    app = stage.app()
    app.task_queue("default", concurrency=1)
    gate = Gate()
    ran: list[str] = []

    @app.task
    async def first() -> None:
        await gate.through()

    @app.task
    async def work(name: str) -> None:
        ran.append(name)

    @app.task(priority="high")
    async def urgent(name: str) -> None:
        ran.append(name)

    await stage.run(app)
    await first.delay()
    await soon(gate.began.get())
    results = [
        *[await work.apply_async((f"low {number}",), priority="low") for number in range(2)],
        *[await work.delay(f"normal {number}") for number in range(2)],
        *[await urgent.delay(f"high {number}") for number in range(2)],
    ]
    assert app.worker is not None
    lanes = app.worker.lanes.values()

    async def all_wait() -> bool:
        return all(len(lane.held) > 1 for lane in lanes)  # of each level one waits for the seat, at least

    await once(all_wait)
    gate.open()
    for result in results:
        await got(result)

    assert ran[:3] == ["high 0", "high 1", "normal 0"]


async def test_a_queue_runs_as_many_at_once_as_it_is_said_to_and_no_more(stage: Stage):
    app = stage.app()
    app.task_queue("slow", concurrency=2)
    two = asyncio.Barrier(2)
    running, most = 0, 0

    @app.task(queue="slow")
    async def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await two.wait()
        running -= 1

    await stage.run(app)
    results = [await work.apply_async(priority=priority) for _ in range(4) for priority in ("high", "normal", "low")]
    for result in results:
        await got(result)

    assert most == 2


async def test_what_waits_behind_a_long_task_goes_to_a_worker_that_is_idle(stage: Stage):
    gate, begun = Gate(), asyncio.Queue[str]()
    workers = [stage.app(), stage.app()]
    for name, app in zip(("busy", "idle"), workers, strict=True):
        app.task_queue("default", concurrency=1)

        @app.task
        async def work(name: str = name) -> None:
            begun.put_nowait(name)
            await gate.through()

    busy, idle = workers
    await stage.run(busy)
    results = [await busy.tasks["work"].delay() for _ in range(2)]
    assert await soon(begun.get()) == "busy"  # and it may hold the other one, too

    await stage.run(idle)
    assert await soon(begun.get()) == "idle"

    gate.open()
    for result in results:
        await got(result)
