"""Handlers in processes: what comes back, what can be stopped, and what a death leaves."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from carteiro.engine.processes import ProcessRunner
from carteiro.errors import BatchFailed, HandlerFailed, InvalidHandler, NotConnected, RetryLater, WorkerLost
from tests.unit import process_handlers as handlers


@pytest.fixture
async def run() -> AsyncIterator[ProcessRunner]:
    runner = ProcessRunner(1, "thumbnail")
    yield runner
    await runner.close()


@pytest.fixture
def pipe(tmp_path: Path) -> str:
    return fifo(tmp_path / "pipe")


def fifo(path: Path) -> str:
    os.mkfifo(path)
    return str(path)


async def read(path: str) -> str:
    return await asyncio.to_thread(Path(path).read_text)


def gone(pid: int) -> bool:
    """Neither running nor a zombie."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.ESRCH
    return False


# -- calls -----------------------------------------------------------------------------------------------------------


async def test_a_call_runs_in_another_process_and_its_result_comes_back(run: ProcessRunner):
    assert await run(handlers.double, 21) == 42
    assert await run(handlers.pid) != os.getpid()


async def test_calls_one_after_another_share_a_process(run: ProcessRunner):
    assert await run(handlers.pid) == await run(handlers.pid)


async def test_calls_at_the_same_time_take_as_many_processes_as_there_are(tmp_path: Path):
    run = ProcessRunner(2, "thumbnail")
    ready, go = [fifo(tmp_path / f"ready{n}") for n in range(2)], [fifo(tmp_path / f"go{n}") for n in range(2)]
    calls = [asyncio.create_task(run(handlers.wait_for, *pair)) for pair in zip(ready, go, strict=True)]
    waiting = asyncio.create_task(run(handlers.double, 1))

    pids = [await read(path) for path in ready]

    assert len(set(pids)) == 2
    assert not waiting.done()
    for path in go:
        await asyncio.to_thread(Path(path).write_text, path)
    assert await asyncio.gather(*calls, waiting) == [*go, 2]
    await run.close()


async def test_large_arguments_and_results_pass(run: ProcessRunner):
    assert await run(handlers.size, b"x" * 5_000_000) == 5_000_000
    assert await run(handlers.repeat, b"xy", 2_500_000) == b"xy" * 2_500_000


async def test_a_process_finds_the_modules_that_its_parent_finds(run: ProcessRunner, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend("/nowhere/at/all")
    assert "/nowhere/at/all" in await run(handlers.search_path)


async def test_a_process_can_be_started_before_it_is_needed(run: ProcessRunner):
    await run.start(handlers.double)
    (child,) = run._children
    assert await run(handlers.pid) == child.pid


# -- errors ----------------------------------------------------------------------------------------------------------


async def test_an_exception_comes_back_as_itself_with_the_traceback_of_its_process(run: ProcessRunner):
    with pytest.raises(ValueError, match="no such picture") as caught:
        await run(handlers.fail, "no such picture")
    (note,) = caught.value.__notes__
    assert "which runs `thumbnail`" in note
    assert "process_handlers.py" in note
    assert "child.py" not in note


async def test_an_exception_that_cannot_be_read_back_comes_as_its_text(run: ProcessRunner):
    with pytest.raises(HandlerFailed, match="Unfit: unfit"):
        await run(handlers.fail_unfit)


async def test_an_exit_fails_the_call_and_not_the_worker(run: ProcessRunner):
    with pytest.raises(HandlerFailed, match="SystemExit: enough"):
        await run(handlers.exit_politely)
    assert await run(handlers.double, 1) == 2


@pytest.mark.parametrize("error", [BatchFailed({3: ValueError("x")}), RetryLater("busy", delay=7)], ids=type)
async def test_what_a_handler_raises_to_steer_its_delivery_keeps_what_it_says(run: ProcessRunner, error: Exception):
    with pytest.raises(type(error)) as caught:
        await run(handlers.raise_it, error)
    assert str(caught.value) == str(error)
    assert {name: repr(value) for name, value in vars(error).items()}.items() <= {
        name: repr(value) for name, value in vars(caught.value).items()
    }.items()


async def test_a_function_that_cannot_be_imported_is_refused_by_name(run: ProcessRunner):
    with pytest.raises(InvalidHandler, match="`thumbnail` runs in a process, which cannot import it"):
        await run(lambda: 1)


async def test_arguments_that_cannot_be_pickled_are_refused_with_their_types(run: ProcessRunner):
    with pytest.raises(InvalidHandler, match=r"`thumbnail` runs in a process, and one of its arguments \(function\)"):
        await run(handlers.size, lambda: b"")  # type: ignore[arg-type]


async def test_a_result_that_cannot_be_pickled_is_refused_with_its_type(run: ProcessRunner):
    with pytest.raises(InvalidHandler, match="`thumbnail` runs in a process, and the `function` that it returned"):
        await run(handlers.return_a_lambda)
    assert await run(handlers.double, 1) == 2


# -- the end of a process --------------------------------------------------------------------------------------------


async def test_a_timeout_stops_a_handler_that_never_ends(run: ProcessRunner, pipe: str):
    async def limited() -> None:
        async with asyncio.timeout(None) as limit:
            spinning.add_done_callback(lambda _: limit.reschedule(0))
            await run(handlers.spin, pipe)

    spinning = asyncio.create_task(read(pipe))
    with pytest.raises(TimeoutError):
        await limited()

    pid = int(spinning.result())
    assert gone(pid)
    assert await run(handlers.pid) != pid


async def test_a_cancelled_call_stops_its_handler(run: ProcessRunner, pipe: str):
    spinning = asyncio.create_task(run(handlers.spin, pipe))
    pid = int(await read(pipe))
    assert not gone(pid)

    spinning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await spinning

    assert gone(pid)


async def test_a_cancelled_call_that_waits_for_a_process_leaves_the_others_alone(run: ProcessRunner, tmp_path: Path):
    ready, go = fifo(tmp_path / "ready"), fifo(tmp_path / "go")
    running = asyncio.create_task(run(handlers.wait_for, ready, go))
    await read(ready)
    waiting = asyncio.create_task(run(handlers.double, 1))
    next_one = asyncio.create_task(run(handlers.double, 2))
    await asyncio.sleep(0)

    waiting.cancel()
    await asyncio.to_thread(Path(go).write_text, "done")

    assert await running == "done"
    assert await next_one == 4


async def test_a_process_that_starts_outlives_the_call_that_asked_for_it(run: ProcessRunner):
    impatient = asyncio.create_task(run(handlers.double, 1))
    await asyncio.sleep(0)
    (child,) = run._children

    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient

    assert await run(handlers.pid) == child.pid


@pytest.mark.parametrize(
    ("death", "said"),
    [
        (handlers.be_killed, "the process that ran `thumbnail` was killed by SIGKILL"),
        (handlers.exit_with_three, "the process that ran `thumbnail` exited with code 3"),
    ],
)
async def test_a_process_that_dies_fails_its_call_and_is_replaced(run: ProcessRunner, death, said):
    with pytest.raises(WorkerLost, match=said):
        await run(death)
    assert await run(handlers.double, 1) == 2


async def test_an_idle_process_that_dies_is_replaced(run: ProcessRunner):
    pid = await run(handlers.pid)
    (child,) = run._children
    os.kill(pid, signal.SIGKILL)
    await child.ended
    assert await run(handlers.pid) != pid


async def test_a_process_that_dies_is_missed_also_while_one_that_it_forked_lives(run: ProcessRunner, pipe: str):
    with pytest.raises(WorkerLost, match="exited with code 3"):
        await run(handlers.die_with_a_forked_child, pipe)
    await asyncio.to_thread(Path(pipe).write_text, "")


async def test_a_process_lives_through_the_signals_that_mean_its_parent(run: ProcessRunner):
    assert await run(handlers.signalled) == "alive"


async def test_a_program_that_a_handler_starts_can_be_terminated(run: ProcessRunner):
    assert await run(handlers.end_a_program) == -signal.SIGTERM


# -- closing ---------------------------------------------------------------------------------------------------------


async def test_closing_gives_a_running_call_its_grace(tmp_path: Path):
    run = ProcessRunner(1, "thumbnail")
    ready, go = fifo(tmp_path / "ready"), fifo(tmp_path / "go")
    running = asyncio.create_task(run(handlers.wait_for, ready, go))
    pid = int(await read(ready))

    closing = asyncio.create_task(run.close(grace=60))
    await asyncio.to_thread(Path(go).write_text, "done")

    assert await running == "done"
    await closing
    assert gone(pid)


async def test_closing_without_grace_kills_what_runs_and_refuses_what_waits(pipe: str):
    run = ProcessRunner(1, "thumbnail")
    running = asyncio.create_task(run(handlers.spin, pipe))
    pid = int(await read(pipe))
    waiting = asyncio.create_task(run(handlers.double, 1))
    await asyncio.sleep(0)

    await run.close()

    assert gone(pid)
    with pytest.raises(WorkerLost):
        await running
    with pytest.raises(NotConnected):
        await waiting
    with pytest.raises(NotConnected):
        await run(handlers.double, 1)


async def test_closing_while_a_process_starts_leaves_none_behind():
    run = ProcessRunner(1, "thumbnail")
    starting = asyncio.create_task(run(handlers.double, 1))
    await asyncio.sleep(0)
    (child,) = run._children

    await run.close()

    with pytest.raises(NotConnected):
        await starting
    assert child.pid is None or gone(child.pid)


def test_all_of_it_holds_on_uvloop_too(pipe: str):
    async def life() -> None:
        run = ProcessRunner(1, "thumbnail")
        assert await run(handlers.repeat, b"xy", 2_500_000) == b"xy" * 2_500_000
        with pytest.raises(WorkerLost, match="exited with code 3"):
            await run(handlers.exit_with_three)
        spinning = asyncio.create_task(run(handlers.spin, pipe))
        pid = int(await read(pipe))
        spinning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await spinning
        assert gone(pid)
        last = await run(handlers.pid)
        await run.close(grace=60)
        assert gone(last)

    uvloop = pytest.importorskip("uvloop")
    uvloop.run(life())


def script(path: Path, body: str) -> list[str]:
    path.write_text(textwrap.dedent(body))
    return [sys.executable, str(path)]


async def test_a_handler_of_the_script_itself_can_be_run(tmp_path: Path):
    command = script(
        tmp_path / "shop.py",
        """
        import asyncio
        from carteiro.engine.processes import ProcessRunner

        def double(number):
            return number * 2

        async def main():
            run = ProcessRunner(1, "double")
            print(await run(double, 21))
            # and not closed: the exit must neither wait for the child nor leave it behind

        if __name__ == "__main__":
            asyncio.run(main())
        """,
    )
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr


async def test_a_script_without_its_guard_is_told_so(tmp_path: Path):
    command = script(
        tmp_path / "shop.py",
        """
        import asyncio
        from carteiro.engine.processes import ProcessRunner

        def double(number):
            return number * 2

        async def main():
            await ProcessRunner(1, "double")(double, 21)

        asyncio.run(main())
        """,
    )
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
    assert done.returncode == 1
    told = done.stderr.splitlines()[-1]  # the child, which ran the script too, has spoken before
    assert 'must do so under `if __name__ == "__main__":`' in told


async def test_a_process_ends_with_a_parent_that_is_killed(tmp_path: Path):
    ready = fifo(tmp_path / "ready")
    held = fifo(tmp_path / "held")
    command = script(
        tmp_path / "shop.py",
        f"""
        import asyncio
        from carteiro.engine.processes import ProcessRunner

        def spin(ready, held):
            end = open(held, "w")  # open until this process is gone
            open(ready, "w").close()
            while True:
                pass

        if __name__ == "__main__":
            asyncio.run(ProcessRunner(1, "spin")(spin, {ready!r}, {held!r}))
        """,
    )
    parent = await asyncio.create_subprocess_exec(*command)
    holding = asyncio.create_task(read(held))
    await read(ready)

    parent.kill()
    await parent.wait()

    assert await holding == ""
