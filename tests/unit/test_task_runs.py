"""What is said of the nodes of a run that the store has no record of."""

from __future__ import annotations

from typing import Any

from carteiro import Carteiro, Signature, chain, group
from carteiro.tasks.canvas import Canvas
from carteiro.tasks.compiling import compile_canvas
from carteiro.tasks.records import Flaw, Record
from carteiro.tasks.runs import states_of

app = Carteiro("shop", broker="memory://")


@app.task
async def work(*, done: Any = None) -> None: ...


def call() -> Signature:
    return work.si()


def states(canvas: Canvas, *running: int, **records: Record) -> str:
    """By number, each state's first letter but for `k`, which is skipped; `n3` is the record of node 3."""
    graph = compile_canvas(canvas, lambda queue, priority: f"tasks.shop.{queue}")
    known = {int(name[1:]): record for name, record in records.items()}
    found = states_of(graph.nodes, graph.scopes, known, dict.fromkeys(running))
    return " ".join(f"{number}:{state}" for number, state in sorted(found.items()))


SUCCEEDED = Record("succeeded", "work", 1.0)
FAILED = Record("failed", "work", 1.0, flaw=Flaw("builtins:ValueError", "no"))
RETRYING = Record("retrying", "work", 1.0)
CANCELLED = Record("cancelled", "work", 1.0)


def test_what_is_not_sent_yet_is_pending_and_what_runs_is_running():
    assert states(chain(call(), call(), call()), 2, n1=SUCCEEDED) == "0:pending 1:succeeded 2:running"


def test_after_a_failure_the_rest_of_the_run_is_skipped_and_its_exit_did_not_fail_itself():
    assert states(chain(call(), call(), call()), n1=FAILED, n0=FAILED) == "0:skipped 1:failed 2:skipped"


def test_an_exit_that_fails_itself_has_failed():
    assert states(chain(call(), call()), n1=SUCCEEDED, n0=FAILED) == "0:failed 1:succeeded"


def test_in_a_cancelled_run_what_waits_for_an_attempt_is_cancelled_and_what_never_began_is_skipped():
    run = chain(group(call(), call()), call(), call())
    assert states(run, n1=RETRYING, n0=CANCELLED) == "0:cancelled 1:cancelled 2:skipped 3:skipped"


def test_callbacks_wait_for_what_they_follow_and_are_skipped_when_it_ends_in_the_other_way():
    run = call().link(call()).link_error(call())  # node 0, then 1 if it succeeds and 2 if it fails
    assert states(run) == "0:pending 1:pending 2:pending"
    assert states(run, n0=SUCCEEDED) == "0:succeeded 1:pending 2:skipped"
    assert states(run, n0=FAILED) == "0:failed 1:skipped 2:pending"
    assert states(run, n0=CANCELLED) == "0:cancelled 1:skipped 2:skipped"


def test_what_follows_a_skipped_callback_is_skipped_too():
    run = call().link(chain(call(), call()))
    assert states(run, n0=FAILED) == "0:failed 1:skipped 2:skipped"


def test_a_failure_in_a_group_that_collects_skips_the_rest_of_its_member_alone():
    run = chain(group(chain(call(), call(), call()), call(), errors="collect"), call())
    told = states(run, 4, n1=FAILED, n3=FAILED)
    assert told == "0:pending 1:failed 2:skipped 3:skipped 4:running"
