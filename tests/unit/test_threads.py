"""Handlers in threads: what comes back, who waits for whom, and what becomes of a thread that hangs."""

import asyncio
import contextvars
import logging
import threading
from collections.abc import AsyncIterator

import pytest

from carteiro.engine.threads import HANGING, ThreadRunner
from carteiro.errors import HandlerFailed, NotConnected


class Gate:
    """A handler that tells when it runs, and runs until it is let go."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.running = asyncio.Event()
        self.go = threading.Event()
        self.thread = threading.current_thread()

    def __call__(self, result: str = "done") -> str:
        self.thread = threading.current_thread()
        self._loop.call_soon_threadsafe(self.running.set)
        self.go.wait()
        return result


@pytest.fixture
async def run() -> AsyncIterator[ThreadRunner]:
    runner = ThreadRunner(1, "reserve")
    yield runner
    await runner.close()


async def begun(run: ThreadRunner, gate: Gate) -> asyncio.Task[str]:
    task = asyncio.create_task(run(gate))
    await gate.running.wait()
    return task


async def give_up(task: asyncio.Task[str]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_call_runs_in_another_thread_and_its_result_comes_back(run: ThreadRunner):
    assert await run(divmod, 7, 2) == (3, 1)
    assert await run(threading.get_ident) != threading.get_ident()


async def test_calls_one_after_another_share_a_thread(run: ThreadRunner):
    assert await run(threading.get_ident) == await run(threading.get_ident)


async def test_no_more_calls_run_at_a_time_than_there_are_threads():
    run = ThreadRunner(2, "reserve")
    gates = [Gate(), Gate(), Gate()]
    tasks = [await begun(run, gates[0]), await begun(run, gates[1]), asyncio.create_task(run(gates[2]))]
    await asyncio.sleep(0)
    assert not gates[2].running.is_set()

    gates[0].go.set()

    await gates[2].running.wait()
    for gate in gates:
        gate.go.set()
    assert await asyncio.gather(*tasks) == ["done"] * 3
    await run.close()


async def test_a_call_sees_the_callers_context_and_cannot_change_it(run: ThreadRunner):
    tenant = contextvars.ContextVar("tenant", default="none")
    tenant.set("br")

    def swap() -> str:
        seen = tenant.get()
        tenant.set("pt")
        return seen

    assert await run(swap) == "br"
    assert tenant.get() == "br"


async def test_an_exception_comes_back_as_itself(run: ThreadRunner):
    error = ValueError("no such order")

    def fail() -> None:
        raise error

    with pytest.raises(ValueError, match="no such order") as caught:
        await run(fail)
    assert caught.value is error


@pytest.mark.parametrize("error", [SystemExit("enough"), KeyboardInterrupt("enough"), asyncio.CancelledError("enough")])
async def test_what_would_end_the_worker_fails_the_call(run: ThreadRunner, error: BaseException):
    def leave() -> None:
        raise error

    with pytest.raises(HandlerFailed, match=f"{type(error).__name__}: enough"):
        await run(leave)
    assert await run(abs, -1) == 1


async def test_stop_iteration_is_an_error_like_any_other(run: ThreadRunner):
    with pytest.raises(RuntimeError, match="StopIteration"):
        await run(next, iter(()))


async def test_a_call_that_is_given_up_while_it_waits_never_runs(run: ThreadRunner):
    first, second = Gate(), Gate()
    running = await begun(run, first)
    waiting = asyncio.create_task(run(second))
    await asyncio.sleep(0)

    await give_up(waiting)
    first.go.set()

    assert await running == "done"
    assert await run(abs, -1) == 1
    assert not second.running.is_set()


async def test_a_handler_that_hangs_keeps_no_other_from_being_handled(
    run: ThreadRunner, caplog: pytest.LogCaptureFixture
):
    hanging = Gate()
    await give_up(await begun(run, hanging))

    assert await run(abs, -1) == 1

    assert run.abandoned == 1
    assert "`reserve` was given up, but no thread can be stopped" in caplog.text
    hanging.go.set()


async def test_a_thread_that_comes_back_leaves_as_many_as_there_were(run: ThreadRunner):
    hanging, others = Gate(), [Gate(), Gate()]
    await give_up(await begun(run, hanging))
    running = await begun(run, others[0])
    waiting = asyncio.create_task(run(others[1]))

    hanging.go.set()
    await asyncio.to_thread(hanging.thread.join)

    assert run.abandoned == 0
    assert not others[1].running.is_set()
    for gate in others:
        gate.go.set()
    assert (await running, await waiting) == ("done", "done")


async def test_when_too_many_hang_calls_wait_for_one_of_them_and_the_log_says_so(
    run: ThreadRunner, caplog: pytest.LogCaptureFixture
):
    gates = [Gate() for _ in range(HANGING)]
    for gate in gates:
        await give_up(await begun(run, gate))
    waiting = asyncio.create_task(run(abs, -1))
    await asyncio.sleep(0)
    assert not waiting.done()
    (error,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert f"`reserve` hangs in {HANGING} threads" in error.getMessage()

    gates[0].go.set()

    assert await waiting == 1
    for gate in gates:
        gate.go.set()


async def test_closing_gives_a_running_call_its_grace_and_refuses_what_waits(run: ThreadRunner):
    gate = Gate()
    running = await begun(run, gate)
    waiting = asyncio.create_task(run(abs, -1))
    await asyncio.sleep(0)

    closing = asyncio.create_task(run.close(grace=60))
    gate.go.set()

    assert await running == "done"
    await closing
    with pytest.raises(NotConnected, match="`reserve`"):
        await waiting
    with pytest.raises(NotConnected, match="`reserve`"):
        await run(abs, -1)


async def test_closing_leaves_a_hanging_thread_behind(run: ThreadRunner):
    gate = Gate()
    await give_up(await begun(run, gate))

    await run.close()

    gate.go.set()


async def test_closing_ends_the_threads():
    run = ThreadRunner(1, "reserve")
    thread = await run(threading.current_thread)
    await run.close()
    await asyncio.to_thread(thread.join)
    assert not thread.is_alive()
