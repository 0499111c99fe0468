"""`carteiro run` as a process among processes: signals, workers that die, files that change."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path

import msgspec
import pytest

from tests.e2e.cli import PATIENCE, Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def gone(pid: int) -> bool:
    """Whether a process that is not ours to wait for ends, or has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], PATIENCE)[0])
    finally:
        os.close(handle)


# -- one process -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_runs_end_and_exits_with_0(project: Project, number: int) -> None:
    with project.running("hello:app") as worker:
        worker.ready()
        project.ok("publish", "slow", str(project.folder / "go"))
        worker.until("slow began")
        worker.send(number)
        worker.until("stopping")
        project.write("go", "")
        worker.until("slow ended")
        assert worker.ended() == 0
    assert project.queue("slow")["waiting"] == 0


@pytest.mark.parametrize("workers", [(), ("--workers", "2")])
def test_a_second_signal_stops_at_once_and_the_attempt_does_not_count(
    project: Project, workers: tuple[str, ...]
) -> None:
    with project.running("hello:app", *workers) as worker:
        worker.ready()
        project.ok("publish", "slow", str(project.folder / "never"))
        worker.until("slow began")
        worker.send()
        worker.until("stopping")
        worker.send()
        assert worker.ended() == 128 + signal.SIGTERM
    (message,) = project.json("topics", "peek", "slow")
    assert message["attempt"] == 1


def test_json_says_ready_and_stopped_and_nothing_else(project: Project) -> None:
    with project.running("hello:app", "--json", "--log-level", "error") as worker:
        ready = msgspec.json.decode(worker.until("{")[0] and worker.output[0])
        assert (ready["event"], ready["app"], ready["pids"]) == ("ready", "hello", [worker.process.pid])
        assert "greetings [hello]" in ready["subscriptions"]
        worker.send()
        assert worker.ended() == 0
        assert worker.output[1:] == ['{"event":"stopped","exit_code":0}']


def test_only_limits_it_to_some_groups_or_topics(project: Project) -> None:
    with project.running("hello:app", "--only", "analytics", "--only", "who") as worker:
        assert ": kept [analytics], who [hello]; pid" in worker.until("is ready").string


def test_on_a_terminal_each_message_is_told_of_twice(project: Project) -> None:
    with project.running("hello:app", terminal=True) as worker:
        worker.ready()
        id = project.ok("publish", "greetings", "Ana").strip()
        worker.until(rf"received +greetings  hello  {id}$")
        worker.until(rf"processed +greetings  hello  {id}  [\d.]+ ms$")
        id = project.ok("publish", "checkout", '{"sku": "bad"}').strip()
        worker.until(rf"failed +checkout  hello  {id}  [\d.]+ ms  ValueError: no such sku: bad$")
        worker.until(rf"received +checkout  hello  {id}  attempt 2$")


@pytest.mark.parametrize(("options", "terminal"), [((), False), (("--quiet",), True)])
def test_no_line_a_message_where_nobody_wants_them(project: Project, options: tuple[str, ...], terminal: bool) -> None:
    with project.running("hello:app", *options, terminal=terminal) as worker:
        worker.ready()
        project.ok("request", "greetings", "Ana")
        worker.send()
        worker.ended()
        assert not [line for line in worker.output if "greetings" in line and "is ready" not in line]


# -- what does not start -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [(), ("--workers", "3")])
def test_what_the_users_module_raises_is_shown_once_without_our_frames(
    project: Project, workers: tuple[str, ...]
) -> None:
    project.write("broken.py", "def fail():\n    1 / 0\n\nfail()\n")
    done = project.carteiro("run", "broken:app", *workers)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "carteiro: module `broken` cannot be imported: ZeroDivisionError: division by zero"
    )
    assert [line for line in done.stderr.splitlines() if "File" in line] == [
        f'  File "{project.folder}/broken.py", line 4, in <module>',
        f'  File "{project.folder}/broken.py", line 2, in fail',
    ]


PRINTING = """
from carteiro import Carteiro

app = Carteiro("printing")

@app.subscriber("numbers", group="here")
async def here(number: int) -> None:
    print("here", number)

@app.subscriber("numbers", group="there", runs_in="process")
def there(number: int) -> None:
    print("there", number)
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_handlers_print_comes_at_once_and_line_by_line(
    project: Project, monkeypatch: pytest.MonkeyPatch, unbuffered: str
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    project.write("printing.py", PRINTING)
    numbers = [str(number) for number in range(100)]
    with project.running("printing:app", "--workers", "2") as workers:
        workers.ready()
        project.ok("publish", "numbers", "-", "--lines", "--app", "printing:app", input="\n".join(numbers))
        printed = [workers.until("^.*(here|there).*$")[0] for _ in range(200)]
    assert set(printed) == {f"{where} {number}" for where in ("here", "there") for number in numbers}


def test_a_broker_that_is_not_there_exits_with_3(project: Project) -> None:
    project.write("away.py", _app("sqlite:////no/such/folder/x.db"))
    for workers in ((), ("--workers", "2")):
        done = project.carteiro("run", "away:app", *workers)
        assert done.returncode == 3
        assert done.stderr.count("\n") == 1


def test_several_workers_need_a_broker_of_several_processes(project: Project) -> None:
    project.write("alone.py", _app("memory://"))
    done = project.carteiro("run", "alone:app", "--workers", "2")
    assert done.returncode == 1
    assert "--workers 2 needs several processes, which the memory broker does not have" in done.stderr


def _app(broker: str) -> str:
    return (
        f'from carteiro import Carteiro\napp = Carteiro("a", broker="{broker}")\n'
        '@app.subscriber("t")\nasync def f(x: int) -> None: ...\n'
    )


# -- supervised workers ------------------------------------------------------------------------------------------------


def test_a_worker_that_dies_is_named_and_another_started(project: Project) -> None:
    with project.running("hello:app", "--workers", "2") as workers:
        pids = workers.ready()
        assert len(set(pids)) == 2
        os.kill(pids[1], signal.SIGKILL)
        assert int(workers.until(r"worker 2 \(pid (\d+)\) was killed by SIGKILL .*: starting another in")[1]) == pids[1]
        another = int(workers.until(r"worker 2 is ready, pid (\d+)")[1])
        assert another not in pids
        workers.send()
        assert workers.ended() == 0
        assert gone(another)
        assert gone(pids[0])


def test_a_message_that_kills_its_worker_does_not_stop_the_others(project: Project) -> None:
    with project.running("hello:app", "--workers", "2") as workers:
        workers.ready()
        project.ok("publish", "deadly", "1")
        workers.until("was killed by SIGKILL")
        assert project.ok("request", "greetings", "Ana") == "hello, Ana\n"


def test_a_worker_is_replaced_without_a_gap_after_so_many_messages(project: Project) -> None:
    with project.running("hello:app", "--max-messages", "3") as workers:
        (first,) = workers.ready()
        for _ in range(3):
            assert project.json("request", "who", "you") == first
        workers.until(rf"worker 1 \(pid {first}\) is replaced: it has handled 3 messages")
        assert project.json("request", "who", "you")  # there is always someone
        second = int(workers.until(r"worker 1 is ready, pid (\d+)")[1])
        assert gone(first)
        assert project.json("request", "who", "you") == second


def test_a_worker_is_replaced_when_it_takes_too_much_memory(project: Project) -> None:
    with project.running("hello:app", "--max-memory", "1") as workers:
        (first,) = workers.ready()
        workers.until(rf"worker 1 \(pid {first}\) is replaced: it takes \d+ MB of memory")
        workers.until("worker 1 is ready")
        assert gone(first)


def test_workers_do_not_outlive_their_supervisor(project: Project) -> None:
    with project.running("hello:app", "--workers", "2") as workers:
        pids = workers.ready()
        workers.send(signal.SIGKILL)
        workers.process.wait(PATIENCE)
        try:
            assert all(gone(pid) for pid in pids)
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def test_a_change_starts_it_again_and_an_error_waits_for_the_next(project: Project) -> None:
    with project.running("hello:app", "--reload") as worker:
        worker.ready()
        source = (project.folder / "hello.py").read_text()
        project.write("hello.py", source + "\ndef broken(:\n")
        worker.until("hello.py changed: starting again")
        worker.until("carteiro: module `hello` cannot be imported: SyntaxError")
        worker.until("waiting for a change")
        project.write("hello.py", source.replace("hello, ", "good day, "))
        worker.until("worker 1 is ready")
        assert project.ok("request", "greetings", "Ana") == "good day, Ana\n"
        worker.send(signal.SIGINT)
        assert worker.ended() == 0
