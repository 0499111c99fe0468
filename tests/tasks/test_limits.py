"""Time limits, and bodies that hold the event loop. Limits across the cluster are in tests/unit/test_task_limits.py."""

import asyncio
import logging
import os
import threading
import time
from pathlib import Path

import pytest

from carteiro import Carteiro, ConfigurationError, HandlerTimeout, Limit, Retry, SoftTimeout
from tests.e2e.tour.stage import Stage, soon
from tests.tasks.things import AT_ONCE, ONCE, Gate, got, spin, with_far


async def test_a_task_that_runs_longer_than_its_timeout_fails_with_that(stage: Stage):
    app = stage.app()
    gate = Gate()

    @app.task(timeout=0.05, retry=ONCE)
    async def work() -> None:
        await gate.through()

    await stage.run(app)

    with pytest.raises(HandlerTimeout, match=r"ran longer than its timeout of 0.05 s"):
        await got(await work.delay())
    assert not gate.cancelled.empty()


async def test_a_task_whose_timeout_is_over_is_tried_again(stage: Stage):
    app = stage.app()
    attempts: list[int] = []

    @app.task(timeout=0.05, retry=Retry(attempts=2, backoff=AT_ONCE))
    async def work() -> str:
        attempts.append(1)
        if len(attempts) == 1:
            await asyncio.Event().wait()
        return "the second time"

    await stage.run(app)

    assert await got(await work.delay()) == "the second time"


async def test_a_task_in_a_thread_that_runs_longer_than_its_timeout_fails(stage: Stage):
    app = stage.app()
    go = threading.Event()

    @app.task(timeout=0.05, retry=ONCE)
    def work() -> None:
        go.wait(20)

    await stage.run(app)
    with pytest.raises(HandlerTimeout):
        await got(await work.delay())
    go.set()


async def test_a_process_that_runs_longer_than_its_timeout_is_stopped(stage: Stage, tmp_path: Path):
    app = stage.app()
    with_far(app)
    limited = app.task(name="limited", runs_in="process", timeout=0.3, retry=ONCE)(spin.function)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    await stage.run(app)
    result = await limited.delay(str(fifo))
    pid = int(await soon(asyncio.to_thread(fifo.read_text)))
    with pytest.raises(HandlerTimeout):
        await got(result)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_soft_timeout_is_raised_within_the_task_which_can_still_end_in_good_order(stage: Stage):
    app = stage.app()

    @app.task(soft_timeout=0.05, timeout=60)
    async def work() -> str:
        try:
            await asyncio.Event().wait()
        except SoftTimeout as error:
            await asyncio.sleep(0)
            return f"so far: {error}"
        return "all of it"

    await stage.run(app)

    assert await got(await work.delay()) == "so far: ran longer than its soft_timeout of 0.05 s"


async def test_a_soft_timeout_that_is_not_caught_fails_the_task(stage: Stage):
    app = stage.app()

    @app.task(soft_timeout=0.05, retry=ONCE)
    async def work() -> None:
        await asyncio.Event().wait()

    await stage.run(app)

    with pytest.raises(SoftTimeout, match=r"soft_timeout of 0\.05 s"):
        await got(await work.delay())


async def test_a_timeout_after_a_soft_timeout_ends_a_task_that_does_not_listen(stage: Stage):
    app = stage.app()

    @app.task(soft_timeout=0.05, timeout=0.1, retry=ONCE)
    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except SoftTimeout:
            await asyncio.Event().wait()

    await stage.run(app)

    with pytest.raises(HandlerTimeout):
        await got(await work.delay())


async def test_a_task_that_ends_in_time_knows_nothing_of_its_limits(stage: Stage):
    app = stage.app()

    @app.task(soft_timeout=60, timeout=120)
    async def work() -> str:
        await asyncio.sleep(0)
        return "in time"

    await stage.run(app)

    assert [await got(await work.delay()) for _ in range(5)] == ["in time"] * 5


async def test_a_body_that_holds_the_loop_is_reported_and_costs_nobody_the_lease(
    stage: Stage, caplog: pytest.LogCaptureFixture
):
    app = stage.app(lease=3)
    ran: list[str] = []

    @app.task(retry=ONCE)
    async def blocks() -> str:
        ran.append("blocks")
        time.sleep(1.5)  # noqa: ASYNC251  # as a careless user's would
        return "at last"

    @app.task(retry=ONCE)
    async def waits() -> str:
        ran.append("waits")
        await go.wait()
        return "too"

    go = asyncio.Event()
    with caplog.at_level(logging.WARNING, "carteiro.worker"):
        await stage.run(app)
        other = await waits.delay()
        blocked = await blocks.delay()
        assert await got(blocked) == "at last"
        go.set()
        assert await got(other) == "too"

    assert sorted(ran) == ["blocks", "waits"]
    assert any("blocks" in record.message and "held the event loop" in record.message for record in caplog.records)


async def test_a_task_under_a_limit_runs_no_more_at_once_than_that_for_each_key(stage: Stage):
    app = stage.app()
    running: dict[int, int] = {}
    most: dict[int, int] = {}

    @app.task(limit=Limit(2, per=lambda a: a.user))
    async def work(user: int) -> None:
        running[user] = running.get(user, 0) + 1
        most[user] = max(most.get(user, 0), running[user])
        for _ in range(10):
            await asyncio.sleep(0)
        running[user] -= 1

    await stage.run(app)
    results = [await work.delay(user) for _ in range(6) for user in (1, 2)]
    for result in results:
        await got(result)

    assert max(most.values()) <= 2


async def test_the_hundreds_of_one_who_is_at_the_limit_hold_up_nobody_else(stage: Stage):
    app = stage.app()
    may_end = asyncio.Event()

    @app.task(limit=Limit(2, per=lambda a: a.user), queue="wide")
    async def work(user: str) -> str:
        if user == "many":
            await may_end.wait()
        return user

    app.task_queue("wide", concurrency=5)
    await stage.run(app)
    many = [await work.delay("many") for _ in range(300)]
    few = [await work.delay("few") for _ in range(10)]

    assert [await got(result) for result in few] == ["few"] * 10
    assert [await result.status() for result in many].count("succeeded") == 0
    may_end.set()


async def test_a_task_under_a_rate_limit_runs_them_all(stage: Stage):
    app = stage.app()

    @app.task(rate_limit="50/s")
    async def work(number: int) -> int:
        return number

    await stage.run(app)
    results = [await work.delay(number) for number in range(12)]

    assert [await got(result) for result in results] == list(range(12))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"timeout": 0}, "timeout=0 of task `work`.*over 0 seconds"),
        ({"soft_timeout": 5, "timeout": 5}, "must be under timeout=5"),
        ({"retry": 3}, r"write retry=Retry\(attempts=3\)"),
        ({"limit": 2}, r"write limit=Limit\(2"),
        ({"priority": "urgent"}, "high, normal or low"),
        ({"runs_in": "cloud"}, '"loop", "thread" or "process"'),
        ({"unique": 7}, "True, a key, or Unique"),
        ({"queue": "a b"}, "one word, without dots"),
        ({"rate_limit": "fast"}, "100/m"),
        ({"retires": 3}, "unexpected keyword argument 'retires'"),
    ],
)
def test_options_of_a_task_that_make_no_sense_are_refused_where_they_are_declared(
    options: dict[str, object], words: str
):
    app = Carteiro("shop", "memory://")

    async def work() -> None: ...

    with pytest.raises((ConfigurationError, TypeError), match=words):
        app.task(**options)(work)  # type: ignore[call-overload]


def test_a_soft_timeout_is_for_async_functions():
    app = Carteiro("shop", "memory://")

    def work() -> None: ...

    with pytest.raises(ConfigurationError, match="only an async function can be told"):
        app.task(soft_timeout=1)(work)
    app.task(name="work")(lambda: None)
    with pytest.raises(ConfigurationError, match="two tasks of app `shop` are called `work`"):
        app.task(work)
    with pytest.raises(ConfigurationError, match="has no name of its own"):
        app.task(lambda: None)
