"""`carteiro workflow` on each system, with workers and commands as processes of their own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.e2e.task_project import BROKERS, Shop, stopped


@pytest.fixture(params=BROKERS)
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    return Shop(tmp_path, request.param, request)


@pytest.fixture
def embedded(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    return Shop(tmp_path, "sqlite", request)


def drawn(text: str) -> list[str]:
    """The lines of a tree, without how long things took."""
    return [re.sub(r" (after|for) (\d[\d.]*[smhd] ?)+", "", line).rstrip() for line in text.splitlines()]


def test_a_run_that_failed_is_drawn_with_the_error_where_it_arose(shop: Shop) -> None:
    run = shop.run_to_its_end("bad")
    assert drawn(shop.said("workflow", "show", run)) == [
        f"run {run}  failed, 4 of 6 done  ValueError: no such sku: bad",
        "└── chain",
        "    ├── add .1  succeeded",
        "    ├── group",
        "    │   ├── add .2  succeeded",
        "    │   └── add .3  succeeded",
        "    ├── check .4  failed, attempt 2  ValueError: no such sku: bad",
        "    ├── total .0  skipped",
        "    └── on error",
        "        └── told .5  succeeded",
    ]


def test_a_run_that_goes_on_is_listed_and_cancelled_with_what_is_left_of_it(shop: Shop) -> None:
    with shop.running("shop:app") as worker:
        run = shop.run_of("long", worker)
        worker.until("encode runs")
        (listed,) = shop.tasks("workflow", "list", "--status", "running")
        assert (listed["id"], listed["nodes"], listed["took"]) == (run, 4, None)
        states = {one["task"]: one["status"] for one in shop.tasks("workflow", "show", run)["tasks"]}
        assert (states["encode"], states["total"]) == ("running", "pending")
        assert f"`carteiro workflow cancel {run}`" in shop.refused("tasks", "cancel", f"{run}.2")
        assert shop.said("workflow", "cancel", run) == f"cancelled {run}\n"
        worker.until("encode interrupted")
        stopped(worker)
    assert shop.said("workflow", "cancel", run) == f"{run} was over already\n"
    (listed,) = shop.tasks("workflow")
    assert listed["status"] == "cancelled"


def test_many_parts_that_are_alike_are_drawn_as_one(embedded: Shop) -> None:
    run = embedded.run_to_its_end("sum")
    assert drawn(embedded.said("workflow", "show", run)) == [
        f"run {run}  succeeded, 61 of 61 done",
        "└── chord",
        "    ├── group",
        "    │   └── 60 × add .1–.60  60 succeeded",
        "    └── total .0  succeeded",
    ]
    (row,) = embedded.said("workflow", "list").splitlines()[1:]
    assert re.fullmatch(rf"{run}  group\(60\) \| total  succeeded  \S+ ago +61 +61 +\S+ +-", row)


def test_the_parts_of_a_run_are_tasks_that_show_themselves_and_are_not_retried(embedded: Shop) -> None:
    run = embedded.run_to_its_end("bad")
    failed = embedded.tasks("tasks", "list", "--status", "failed")
    assert [one["id"] for one in failed] == [f"{run}.4"], "the failure of the run itself is no task's"
    assert "start the run again" in embedded.refused("tasks", "retry", f"{run}.4")
    final = embedded.tasks("tasks", "show", f"{run}.0")
    assert (final["task"], final["failed_with"]) == ("total", f"{run}.4")
    shown = embedded.said("tasks", "show", f"{run}.2")
    assert "arguments\n  the result of .1\n  3\n\nresult\n  5\n" in shown


def test_a_group_that_collects_goes_on_and_shows_what_failed(embedded: Shop) -> None:
    run = embedded.run_to_its_end("collected")
    assert drawn(embedded.said("workflow", "show", run)) == [
        f"run {run}  succeeded, 2 of 3 done",
        "└── group, which collects errors",
        "    ├── add .1  succeeded",
        "    └── check .2  failed, attempt 2  ValueError: no such sku: bad",
    ]


def test_a_run_that_there_is_not_is_named_and_fails(embedded: Shop) -> None:
    assert embedded.said("workflow") == "no runs\n"
    for command in ("show", "cancel"):
        assert "there is no run `nope`" in embedded.refused("workflow", command, "nope")
