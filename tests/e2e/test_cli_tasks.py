"""`carteiro tasks` on each system, with workers and commands as processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.task_project import BROKERS, Shop, stopped


@pytest.fixture(params=BROKERS)
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    return Shop(tmp_path, request.param, request)


@pytest.fixture
def embedded(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    return Shop(tmp_path, "sqlite", request)


def test_what_became_of_tasks_is_listed_and_shown_in_full(shop: Shop) -> None:
    with shop.running("shop:app") as worker:
        worker.ready()
        sum_of_two = shop.send("add", a=1, b=2)
        bad = shop.send("check", "strict", sku="bad")
        worker.until("gave up on")
        stopped(worker)

    listed = shop.said("tasks").splitlines()
    assert listed[0].split() == ["id", "task", "status", "queue", "attempt", "since", "took", "worker", "progress"]
    assert [line.split()[:5] for line in listed[1:]] == [
        [bad, "check", "failed", "strict", "2"],
        [sum_of_two, "add", "succeeded", "default", "1"],
    ]
    succeeded = shop.tasks("tasks", "show", sum_of_two)
    assert (succeeded["status"], succeeded["result"], succeeded["error"]) == ("succeeded", 3, None)
    failed = shop.tasks("tasks", "show", bad)
    assert (failed["error"], failed["error_type"]) == ("ValueError: no such sku: bad", "builtins.ValueError")
    assert (failed["arguments"], failed["dead_letter"]["queue"]) == ({"sku": "bad"}, "dlq_tasks.shop.strict")
    shown = shop.said("tasks", "show", bad)
    assert shown.count('raise ValueError(f"no such sku: {sku}")') == len(failed["attempts"]) == 2
    assert '    "sku": "bad"\n' in shown


def test_a_failed_task_is_tried_again_and_nothing_else_is(shop: Shop) -> None:
    with shop.running("shop:app") as worker:
        worker.ready()
        done, bad = shop.send("add", a=1, b=2), shop.send("check", "strict", sku="bad")
        worker.until("gave up on")
        stopped(worker)
    shop.write("mended", "")
    assert f"`{done}` has not failed, it is succeeded" in shop.refused("tasks", "retry", done)
    assert shop.said("tasks", "retry", bad) == f"{bad} is sent again\n"
    assert f"`{bad}`" in shop.refused("tasks", "retry", bad)
    with shop.running("shop:app") as worker:
        worker.until("checked bad")
        stopped(worker)
    shown = shop.tasks("tasks", "show", bad)
    assert (shown["status"], shown["result"], shown["attempt"]) == ("succeeded", "bad", 1)


def test_tasks_that_wait_are_shown_where_the_broker_shows_them_and_cancelled_for_good(shop: Shop) -> None:
    by_id, by_name, left = (
        shop.send("check", "strict", sku="a"),
        shop.send("encode", size=1),
        shop.send("add", a=1, b=2),
    )
    if shop.shows_what_waits:
        waiting = shop.tasks("tasks", "list", "--status", "pending")
        assert {one["id"]: (one["task"], one["queue"]) for one in waiting} == {
            by_id: ("check", "strict"),
            by_name: ("encode", "default"),
            left: ("add", "default"),
        }
        assert shop.tasks("tasks", "show", by_name)["arguments"] == {"size": 1}
        assert shop.said("tasks", "cancel", by_id) == f"cancelled {by_id} (check, pending)\n"
        assert shop.tasks("tasks", "cancel", "--task", "encode", "--yes") == [
            {"id": by_name, "task": "encode", "was": "pending", "cancelled": True}
        ]
    else:
        assert "and 3 more that wait in their queues" in shop.said("tasks")
        assert "--force cancels it all the same" in shop.refused("tasks", "cancel", by_id)
        shop.said("tasks", "cancel", by_id, by_name, "--force")
    with shop.running("shop:app") as worker:
        worker.ready()
        shop.send("start", kind="sum")
        worker.until("run ended")
        stopped(worker)
        assert not [line for line in worker.output if "encode" in line or "gave up" in line]
    assert [shop.tasks("tasks", "show", one)["status"] for one in (by_id, by_name, left)] == [
        "cancelled", "cancelled", "succeeded",
    ]  # fmt: skip
    assert shop.said("tasks", "cancel", left) == f"{left} was over: succeeded\n"


def test_a_running_task_shows_its_progress_and_is_interrupted_by_a_cancel(shop: Shop) -> None:
    with shop.running("shop:app") as worker:
        worker.ready()
        sent = shop.send("encode", size=7)
        worker.until("encode runs")
        (listed,) = shop.tasks("tasks", "list", "--status", "running")
        assert (listed["id"], listed["attempt"]) == (sent, 1)
        assert (listed["progress"]["done"], listed["progress"]["note"]) == (3, "size 7")
        assert "[#########---------------------] 3 of 10 (30%), size 7" in shop.said("tasks", "show", sent)
        assert shop.said("tasks", "cancel", sent) == f"cancelled {sent} (encode, running)\n"
        worker.until(f"encode interrupted {sent}")
        stopped(worker)
    (listed,) = shop.tasks("tasks", "list", "--status", "cancelled")
    assert (listed["task"], listed["queue"]) == ("encode", "default")


def test_a_task_that_waits_for_its_next_attempt_says_until_when_and_why(embedded: Shop) -> None:
    embedded.write("shop.py", (embedded.folder / "shop.py").read_text().replace("constant(0.01)", "constant(3600)"))
    with embedded.running("shop:app") as worker:
        worker.ready()
        bad = embedded.send("check", "strict", sku="bad")
        worker.until("again in")
        stopped(worker)
    shown = embedded.tasks("tasks", "show", bad)
    assert (shown["status"], shown["error"]) == ("retrying", "ValueError: no such sku: bad")
    assert 3500 < shown["until"] - shown["at"] <= 3600
    assert embedded.said("tasks", "cancel", "--queue", "strict", "--yes") == f"cancelled {bad} (check, retrying)\n"


def test_a_list_has_only_what_is_asked_for(embedded: Shop) -> None:
    sum_of_two, bad = embedded.send("add", a=1, b=2), embedded.send("check", "strict", sku="bad")
    embedded.said("tasks", "cancel", bad)
    by_filter = {
        ("--status", "cancelled"): [bad],
        ("--status", "pending", "--status", "failed"): [sum_of_two],
        ("--task", "add"): [sum_of_two],
        ("--queue", "strict"): [bad],
        ("--since", "2999-01-01"): [],
        ("--limit", "1"): [bad],
    }
    for options, ids in by_filter.items():
        assert [one["id"] for one in embedded.tasks("tasks", "list", *options)] == ids, options


def test_what_is_not_known_is_named_and_fails(embedded: Shop) -> None:
    assert embedded.said("tasks") == "no tasks\n"
    for command in ("show", "cancel", "retry"):
        assert "nothing is known of a task `nope`" in embedded.refused("tasks", command, "nope")
    wrong = embedded.carteiro("tasks", "list", "--status", "lost", "--app", "shop:app")
    assert (wrong.returncode, "`lost` is no status: it is pending, running" in wrong.stderr) == (2, True)
    assert embedded.carteiro("tasks", "cancel", "--app", "shop:app").returncode == 2


def test_without_an_app_the_broker_alone_is_enough_where_it_keeps_state(embedded: Shop) -> None:
    sent = embedded.send("add", a=1, b=2)
    assert [one["id"] for one in embedded.json("tasks")] == [sent]
    nowhere = embedded.carteiro("tasks", "--broker", "memory://")
    assert nowhere.returncode == 1
