"""Other schedulers drive carteiro, as the guide says: its files, in processes of their own."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cli import Project, Running
from tests.e2e.test_docs import ROOT, blocks

GUIDE = ROOT / "docs/guides/other-schedulers.md"

# Stands in for the night: the job is due at once, and as many schedulers as there are processes have it.
DUE_NOW = """
import asyncio, sys
from datetime import datetime
import clock

clock.scheduler.modify_job("report", next_run_time=datetime.now(clock.scheduler.timezone))
asyncio.run(clock.serve())
"""


class Guide(Project):
    """The guide's files, each under its own name."""

    def __init__(self, folder: Path, broker: str | None) -> None:
        super().__init__(folder, broker)
        for code in blocks(GUIDE, "python"):
            if titled := re.match(r"# (\S+\.py)\n", code):
                self.write(titled[1], code)

    @contextlib.contextmanager
    def python(self, *args: str) -> Iterator[Running]:
        """`python` with these arguments, killed at the end if it is still there."""
        process = Running([sys.executable, *args], self.folder, self._settings, terminal=False)
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(params=["sqlite", "redis", "rabbitmq"])
def guide(request: pytest.FixtureRequest, tmp_path: Path) -> Guide:
    return Guide(tmp_path, None if request.param == "sqlite" else request.getfixturevalue(f"{request.param}_url"))


def test_apscheduler_publishes_through_an_app(guide: Guide):
    with guide.running("clock:shop") as worker:
        worker.ready()
        with guide.python("clock.py"):
            worker.until("apscheduler is alive")
            worker.until("apscheduler is alive")


def test_two_apschedulers_with_one_job_have_its_task_run_once(guide: Guide):
    with guide.python("-c", DUE_NOW) as first, guide.python("-c", DUE_NOW) as second:
        with guide.running("clock:shop") as worker:
            worker.ready()
            worker.until(r"report of \d{4}-\d\d-\d\d")
            for _ in range(2):
                worker.until("apscheduler is alive")
            worker.send(signal.SIGTERM)
            assert worker.ended() == 0
        assert (first.process.poll(), second.process.poll()) == (None, None)

    assert len([line for line in worker.output if line.startswith("report of")]) == 1
    assert not any("raised an exception" in line for line in (*first.output, *second.output))


def test_taskiqs_scheduler_publishes_through_an_app(guide: Guide):
    with guide.running("ticks:house") as worker:
        worker.ready()
        with guide.python("-m", "taskiq", "scheduler", "ticks:scheduler") as scheduler:
            worker.until("taskiq ticks")
            worker.until("taskiq ticks")
            scheduler.send(signal.SIGINT)
            scheduler.until("Good bye")


def test_what_the_guide_publishes_by_a_command_is_handled(guide: Guide):
    with guide.running("clock:shop") as worker:
        worker.ready()
        guide.ok("publish", "heartbeats", '"cron"', "--app", "clock:shop", "--id", "beat-1")
        worker.until("cron is alive")
        guide.ok(
            "publish", "tasks.shop.default", '{"day": "2026-01-01"}', "--app", "clock:shop", "--type", "report",
            "--id", "report-2026-01-01",
        )  # fmt: skip
        worker.until("report of 2026-01-01")
