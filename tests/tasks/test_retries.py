"""Failing, and being tried again."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from carteiro import ConfigurationError, Message, Reject, Retry, RetryLater, WorkerLost
from tests.e2e.tour.stage import Stage, soon
from tests.tasks.things import AT_ONCE, ONCE, THRICE, TWICE, PaymentDown, comes_to, got, unchecked, with_far


async def test_a_task_that_fails_is_tried_again_as_its_policy_says(stage: Stage):
    app = stage.app()
    attempts: list[int] = []

    @app.task(retry=THRICE)
    async def work(message: Message) -> str:
        attempts.append(message.attempt)
        if message.attempt < 3:
            raise ValueError("not yet")
        return "the third time"

    await stage.run(app)

    assert await got(await unchecked(work).delay()) == "the third time"
    assert attempts == [1, 2, 3]
    assert await stage.dead() == []


async def test_a_task_that_is_out_of_attempts_is_failed_and_a_dead_letter(stage: Stage):
    app = stage.app()

    @app.task(retry=TWICE)
    async def work(number: int) -> None:
        raise ValueError(f"no {number}")

    await stage.run(app)
    result = await work.delay(7)
    with pytest.raises(ValueError, match="no 7"):
        await got(result)
    await stage.settled("tasks.shop.default")

    (letter,) = await stage.dead("dlq_tasks.shop.default")
    assert (letter.message.id, letter.message.type, letter.message.body) == (result.id, "work", b'{"number":7}')
    assert letter.reason == "ValueError: no 7"
    assert [failure.attempt for failure in letter.history] == [1, 2]


async def test_a_dead_letter_that_is_replayed_is_run_again_and_its_result_is_the_new_one(stage: Stage):
    app = stage.app()
    mended = False

    @app.task(retry=ONCE)
    async def work() -> str:
        if not mended:
            raise ValueError("no")
        return "mended"

    await stage.run(app)
    result = await work.delay()
    with pytest.raises(ValueError, match="no"):
        await got(result)
    await stage.settled("tasks.shop.default")
    mended = True
    assert await (await stage.inspector()).replay("dlq_tasks.shop.default") == 1

    await comes_to(app, result, "succeeded")
    assert await got(result) == "mended"
    assert await stage.dead() == []


async def test_a_task_asks_for_its_retry_from_inside(stage: Stage):
    app = stage.app()

    @app.task(retry=Retry(attempts=3, on=(PaymentDown,)))
    async def work(message: Message) -> str:
        if message.attempt == 1:
            raise RetryLater("not ready", delay=0)
        return "ready"

    await stage.run(app)

    assert await got(await unchecked(work).delay()) == "ready"


async def test_a_task_that_asks_for_a_retry_when_it_has_none_left_has_failed(stage: Stage):
    app = stage.app()

    @app.task(retry=ONCE)
    async def work() -> None:
        raise RetryLater("not ready", delay=0)

    await stage.run(app)

    with pytest.raises(RetryLater, match="not ready"):
        await got(await work.delay())


async def test_only_what_the_policy_names_is_tried_again(stage: Stage):
    app = stage.app()
    ran: list[str] = []

    @app.task(retry=Retry(attempts=3, backoff=AT_ONCE, on=(PaymentDown,)))
    async def work(kind: str) -> None:
        ran.append(kind)
        raise {"payment": PaymentDown("Itaú", 503), "value": ValueError("no"), "reject": Reject("no")}[kind]

    await stage.run(app)
    for kind, error in (("payment", PaymentDown), ("value", ValueError), ("reject", Reject)):
        with pytest.raises(error):
            await got(await work.delay(kind))

    assert [ran.count(kind) for kind in ("payment", "value", "reject")] == [3, 1, 1]


async def test_the_retry_state_tells_a_task_where_it_stands(stage: Stage):
    app = stage.app()
    seen: list[Any] = []

    @app.task(retry=THRICE)
    async def work() -> None:
        state = work.retry_state
        seen.append((state.attempt, state.attempts, state.is_last, state.last_error, len(state.failures)))
        raise ValueError(f"no {state.attempt}")

    @app.task(retry=ONCE)
    def in_thread() -> int:
        return in_thread.retry_state.attempts

    await stage.run(app)
    with pytest.raises(ValueError, match="no 3"):
        await got(await work.delay())

    assert seen == [
        (1, 3, False, None, 0),
        (2, 3, False, "ValueError: no 1", 1),
        (3, 3, True, "ValueError: no 2", 2),
    ]
    assert await got(await in_thread.delay()) == 1
    assert await got(await in_thread.apply_async(retry=7)) == 7
    with pytest.raises(ConfigurationError, match=r"`work\.retry_state` is for use within a task"):
        _ = work.retry_state


async def test_a_process_that_dies_is_an_attempt(stage: Stage, tmp_path: Path):
    app = stage.app()
    with_far(app)
    dies = app.tasks["dies"]

    await stage.run(app)

    assert await got(await dies.delay(str(tmp_path / "trace"))) == "lived"
    (tmp_path / "trace").unlink()
    with pytest.raises(WorkerLost, match="exited with code 7"):
        await got(await dies.apply_async((str(tmp_path / "trace"),), retry=1))


async def test_a_worker_that_dies_is_an_attempt(stage: Stage):
    app = stage.mortal_app(lease=1)
    attempts: list[int] = []

    @app.task(retry=TWICE)
    async def work(message: Message) -> str:
        attempts.append(message.attempt)
        return "lived"

    app.crash_at("tasks.shop.default", "claimed")
    async with app:  # which stays open while its worker is replaced
        await stage.run(app)

        assert await got(await unchecked(work).delay()) == "lived"
        assert attempts == [2]


async def test_a_task_whose_last_attempt_died_with_its_worker_is_failed_as_lost(stage: Stage):
    app = stage.mortal_app(lease=1)

    @app.task(retry=ONCE)
    async def work() -> None: ...

    app.crash_at("tasks.shop.default", "claimed")
    async with app:  # which stays open while its worker is replaced
        await stage.run(app)

        with pytest.raises(WorkerLost, match="died or lost its lease once"):
            await got(await work.delay())


async def test_a_worker_that_dies_after_the_ack_has_lost_nothing(stage: Stage):
    app = stage.mortal_app(lease=1)
    attempts: list[int] = []

    @app.task(retry=TWICE)
    async def work(message: Message) -> str:
        attempts.append(message.attempt)
        return "done"

    app.crash_at("tasks.shop.default", "after_ack")
    async with app:  # which stays open while its worker is replaced
        await stage.run(app)

        assert await got(await unchecked(work).delay()) == "done"
        assert attempts == [1]


async def test_a_shutdown_is_no_attempt(stage: Stage):
    app = stage.app(grace=0)
    began: asyncio.Queue[int] = asyncio.Queue()
    go = asyncio.Event()

    @app.task(retry=ONCE)
    async def work(message: Message) -> str:
        began.put_nowait(message.attempt)
        await go.wait()
        return "done"

    async with app:
        await stage.run(app)
        result = await unchecked(work).delay()
        assert await soon(began.get()) == 1
        await stage.stop(app)
        assert await result.status() in ("pending", "running")
        go.set()
        await stage.run(app)

        assert await got(result) == "done"
        assert await soon(began.get()) == 1
