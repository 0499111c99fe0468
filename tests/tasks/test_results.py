"""Results: waiting for them, how tasks stand, progress, and errors that travel."""

import asyncio
import sys
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from carteiro import (
    ConfigurationError,
    HandlerFailed,
    InvalidBody,
    NoResult,
    Reject,
    ResultTimeout,
    ResultTooLarge,
    Retry,
    TaskFailed,
    TaskResult,
    Unencodable,
    constant,
    set_progress,
)
from carteiro.ports.store import Entry, Store
from carteiro.tasks.records import progress_key, progress_of, running_key
from tests.e2e.tour.stage import PATIENCE, Stage, soon
from tests.tasks.things import ONCE, Gate, PaymentDown, comes_to, got, once, told

# -- waiting for it --------------------------------------------------------------------------------------------------


async def test_get_waits_for_the_end_of_a_task_and_can_be_called_again_and_again(stage: Stage):
    app = stage.app()
    gate = Gate()

    @app.task
    async def work() -> str:
        await gate.through()
        return "done"

    await stage.run(app)
    result = await work.delay()
    before = asyncio.create_task(result.get())
    await soon(gate.began.get())
    meanwhile = asyncio.create_task(result.get())
    gate.open()

    assert await soon(before) == await soon(meanwhile) == await got(result) == await got(result) == "done"


async def test_get_gives_up_after_its_timeout_and_the_task_goes_on(stage: Stage):
    app = stage.app()
    gate = Gate()

    @app.task
    async def work() -> str:
        await gate.through()
        return "done"

    await stage.run(app)
    result = await work.delay()
    with pytest.raises(ResultTimeout, match=f"no result of `{result.id}` within 0.01 s") as raised:
        await result.get(timeout=0.01)
    assert isinstance(raised.value, TimeoutError)

    gate.open()
    assert await got(result) == "done"


async def test_many_wait_for_one_result_and_one_waits_for_many(stage: Stage):
    app = stage.app()
    gate = Gate()

    @app.task
    async def work(number: int) -> int:
        await gate.through()
        return number

    await stage.run(app)
    results = [await work.delay(number) for number in range(20)]
    waiting = [asyncio.create_task(result.get()) for result in results for _ in range(20)]
    await soon(gate.began.get())
    gate.open()

    assert await soon(asyncio.gather(*waiting)) == [number for number in range(20) for _ in range(20)]


class Counting:
    """A store that notes each call of those that read."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def get(self, keys: Any) -> Mapping[str, Entry]:
        self.calls.append("get")
        return await self._inner.get(keys)

    async def changed(self, versions: Mapping[str, int]) -> Mapping[str, Entry | None]:
        self.calls.append("changed")
        return await self._inner.changed(versions)


async def test_waiting_for_a_result_is_one_call_that_blocks_and_polls_nothing(stage: Stage):
    worker, app = stage.app(), stage.app()
    gate = Gate()

    @worker.task
    async def work() -> str:
        await gate.through()
        return "done"

    task = app.task(work.function)
    await stage.run(worker)
    async with app:
        counting = Counting(app.tasks._store())
        app.tasks._store = lambda: counting  # type: ignore[method-assign]
        result = await task.delay()
        waiting = asyncio.create_task(result.get())
        await soon(gate.began.get())
        await asyncio.wait([waiting], timeout=0.4)  # in which who polls would look again
        gate.open()

        assert await soon(waiting) == "done"
        assert counting.calls == ["changed"]


async def test_another_app_gets_the_result_by_the_tasks_id(stage: Stage):
    app = stage.app()

    @app.task
    async def work() -> dict[str, int]:
        return {"a": 1}

    await stage.run(app)
    id = (await work.delay()).id

    other = stage.app("other")

    @other.task
    async def unrelated() -> None: ...

    async with other:
        assert await got(other.tasks.result(id)) == {"a": 1}
    fresh = stage.app()
    fresh.task(work.function)
    async with fresh:
        handle = fresh.tasks.result(id, task="work")
        assert await got(handle) == {"a": 1}
        assert await handle.status() == "succeeded"
        with pytest.raises(ConfigurationError, match="no task `wrok`: it has work"):
            fresh.tasks.result(id, task="wrok")


ASK = """
import asyncio, sys
from carteiro import Carteiro

async def main(url, store, id):
    app = Carteiro("shop", url, store=store or None)

    @app.task
    async def work() -> int: ...

    async with app:
        print(await app.tasks.result(id, task="work").get(timeout=20))

asyncio.run(main(*sys.argv[1:]))
"""


async def test_another_process_waits_for_the_result_by_the_tasks_id(stage: Stage):
    if stage.url.startswith("memory"):
        pytest.skip("what is in memory belongs to one process")
    app = stage.app()
    gate = Gate()

    @app.task
    async def work() -> int:
        await gate.through()
        return 7

    await stage.run(app)
    result = await work.delay()
    store = "" if stage.store == stage.url else stage.store
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ASK, stage.url, store, result.id, stdout=asyncio.subprocess.PIPE
    )
    gate.open()
    out, _ = await soon(process.communicate())

    assert out == b"7\n"


# -- how it stands ---------------------------------------------------------------------------------------------------


async def test_the_status_of_a_task_goes_from_pending_over_running_to_its_end(stage: Stage):
    app = stage.app()
    gate = Gate()

    @app.task
    async def work() -> None:
        await gate.through()

    async with app:
        result = await work.delay()
        assert await result.status() == "pending"
        await stage.run(app)
        await soon(gate.began.get())
        await soon(app.tasks._store().changed({running_key(result.id): 0}))
        assert await result.status() == "running"
        gate.open()
        await got(result)
        assert await result.status() == "succeeded"


async def test_the_status_of_what_has_failed_tells_whether_it_is_tried_again(stage: Stage):
    app = stage.app()

    @app.task(retry=Retry(attempts=2, backoff=constant(3600)))
    async def retried() -> None:
        raise ValueError("no")

    @app.task(retry=ONCE)
    async def failed() -> None:
        raise ValueError("no")

    await stage.run(app)
    first, second = await retried.delay(), await failed.delay()
    with pytest.raises(ValueError, match="no"):
        await got(second)
    record = await comes_to(app, first, "retrying")

    assert await second.status() == "failed"
    assert await first.status() == "retrying"
    assert record.flaw is not None
    assert record.flaw.text == "ValueError: no"


async def test_progress_is_read_live_and_after_the_end(stage: Stage):
    app = stage.app()
    gates = [Gate(), Gate()]

    @app.task
    async def work() -> None:
        set_progress(1, 3)
        await gates[0].through()
        set_progress(2, 3, "two of three")
        await gates[1].through()
        set_progress(3, 3, "done")

    await stage.run(app)
    result = await work.delay()

    async def seen(done: float) -> str | None:
        await told(app, progress_key(result.id), lambda entry: entry is not None and progress_of(entry).done == done)
        progress = await result.progress()
        assert progress is not None
        assert (progress.done, progress.total) == (done, 3)
        return progress.note

    assert await seen(1) is None
    gates[0].open()
    assert await seen(2) == "two of three"
    gates[1].open()
    await got(result)
    assert await seen(3) == "done"


async def test_a_task_in_a_thread_says_how_far_it_is(stage: Stage):
    app = stage.app()
    go = threading.Event()

    @app.task
    def work() -> None:
        set_progress(50, 100)
        go.wait(PATIENCE)

    await stage.run(app)
    result = await work.delay()

    await told(app, progress_key(result.id), lambda entry: entry is not None and progress_of(entry).done == 50)
    go.set()
    await got(result)


def test_progress_outside_of_a_task_is_refused():
    with pytest.raises(ConfigurationError, match="for use within a task"):
        set_progress(1)


# -- errors ----------------------------------------------------------------------------------------------------------


async def failing(stage: Stage, error: BaseException) -> BaseException:
    """The error as it comes back from a task that raises it."""
    app = stage.app()

    @app.task(retry=ONCE)
    async def work() -> None:
        raise error

    await stage.run(app)
    with pytest.raises(BaseException) as raised:
        await got(await work.delay())
    return raised.value


async def test_a_failure_comes_back_as_the_exception_with_the_remote_traceback_as_its_cause(stage: Stage):
    error = await failing(stage, ZeroDivisionError("division by naught", 7))

    assert type(error) is ZeroDivisionError
    assert error.args == ("division by naught", 7)
    assert "raise error" in str(error.__cause__)
    assert "ZeroDivisionError" in str(error.__cause__)
    assert "carteiro/engine" not in str(error.__cause__)


async def test_a_users_own_exception_comes_back_with_its_type_and_what_it_holds(stage: Stage):
    error = await failing(stage, PaymentDown("Itaú", 503))

    assert type(error) is PaymentDown
    assert str(error) == "Itaú does not answer"
    assert (error.bank, error.code) == ("Itaú", 503)


async def test_an_exception_that_is_not_known_here_comes_back_as_task_failed(stage: Stage):
    class Hidden(Exception): ...

    error = await failing(stage, Hidden("where am I?"))

    assert type(error) is TaskFailed
    assert str(error) == "Hidden: where am I?"
    assert "raise error" in str(error.__cause__)


async def test_an_exception_whose_arguments_cannot_travel_comes_back_as_task_failed(stage: Stage):
    error = await failing(stage, ValueError(threading.Lock()))

    assert type(error) is TaskFailed
    assert str(error).startswith("ValueError: <unlocked")


async def test_a_task_that_asks_the_program_to_exit_has_only_failed(stage: Stage):
    error = await failing(stage, SystemExit(3))

    assert type(error) is TaskFailed
    assert str(error) == "SystemExit: 3"


async def test_a_rejected_task_fails_at_once_with_its_reason(stage: Stage):
    error = await failing(stage, Reject("the order is closed"))

    assert type(error) is Reject
    assert str(error) == "the order is closed"


async def test_a_task_that_raises_the_cancel_of_nobody_has_failed(stage: Stage):
    error = await failing(stage, asyncio.CancelledError())

    assert type(error) is HandlerFailed


# -- what is not kept ------------------------------------------------------------------------------------------------


async def test_a_task_without_results_stores_nothing_and_says_so_to_who_asks(stage: Stage):
    app = stage.app()
    ran: asyncio.Queue[int] = asyncio.Queue()

    @app.task(result=False)
    async def work(number: int) -> None:
        ran.put_nowait(number)

    await stage.run(app)
    before = await app.tasks._store().scan("")
    result: TaskResult[None] = await work.delay(7)
    assert await soon(ran.get()) == 7
    await stage.settled("tasks.shop.default")

    assert await app.tasks._store().scan("") == before
    for ask in (result.get, result.status, result.cancel, result.progress):
        with pytest.raises(NoResult, match="`work` keeps nothing: it is declared with result=False"):
            await ask()


async def test_a_result_is_forgotten_after_its_time(stage: Stage):
    stage.hold_time()
    app = stage.app(result_ttl="1h")

    @app.task
    async def kept() -> int:
        return 1

    @app.task(result_ttl="5m")
    async def brief() -> int:
        return 2

    await stage.run(app)
    long, short = await kept.delay(), await brief.delay()
    await soon(stage.pass_until(asyncio.gather(long.get(), short.get())))

    async def is_forgotten(result: TaskResult[int]) -> bool:
        return await result.status() == "pending"

    await stage.pass_until(once(lambda: is_forgotten(short)), step=10, most=600)
    assert await long.status() == "succeeded"
    await stage.pass_until(once(lambda: is_forgotten(long)), step=60, most=2 * 3600)


async def test_a_result_that_is_too_large_fails_where_it_arises(stage: Stage):
    app = stage.app(result_size=1000)

    @app.task
    async def large() -> str:
        return "x" * 5000

    @app.task
    async def fits() -> str:
        return "x" * 900

    await stage.run(app)

    assert len(await got(await fits.delay())) == 900
    with pytest.raises(ResultTooLarge, match=r"`large` returned has 5 KB.*up to 1 KB.*result_size="):
        await got(await large.delay())


async def test_a_result_that_no_body_can_hold_fails_where_it_arises(stage: Stage):
    app = stage.app()
    ran: list[int] = []

    @app.task
    async def work() -> Any:
        ran.append(1)
        return {"lock": threading.Lock()}

    await stage.run(app)

    with pytest.raises(Unencodable, match=r"`_thread.lock` at `\$.*lock`"):
        await got(await work.delay())
    assert ran == [1]


async def test_a_result_that_is_not_what_the_task_says_it_returns_is_a_clear_error(stage: Stage):
    app = stage.app()

    @app.task
    async def work() -> list[int]:
        return ["one"]  # type: ignore[list-item]

    await stage.run(app)

    words = r"task `work` returned is not what it says it returns, `list\[int\]`: Expected `int`, got `str`"
    with pytest.raises(InvalidBody, match=words):
        await got(await work.delay())


async def test_an_app_without_tasks_says_why_it_cannot_be_asked(stage: Stage):
    if stage.store != stage.url:
        app = stage.app("bare", store=None)
        async with app:
            with pytest.raises(ConfigurationError, match="declares no tasks"):
                await app.tasks.result("unknown").status()
    async with stage.app("bare") as app:
        assert await app.tasks.result("unknown").status() == "pending"
