"""The benchmarks run, and print the ratios that they are there for. How fast anything was is not asked here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import page
from benchmarks.bench import Figure, Result

ROOT = Path(__file__).parents[2]


def run(system: str, tmp_path: Path, *options: str, peer: str | None = "Huey") -> Any:
    """The figures of a quick run with one peer, if there is any. Huey needs no environment of its own."""
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "benchmarks", "--system", system, "--quick", "--json", str(out)]
    peers = [] if peer is None else ["--peers", peer]
    done = subprocess.run([*command, *peers, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())[system]


@pytest.mark.slow
def test_a_quick_run_puts_carteiro_beside_the_bare_loop_and_huey(tmp_path: Path) -> None:
    figures = run("sqlite", tmp_path, "--only", "handled")["handled"]["figures"]
    assert figures["carteiro / best peer (Huey)"] > 0
    assert figures["carteiro / bare loop"] > 0


@pytest.mark.slow
@pytest.mark.needs("redis")
def test_the_same_contestants_are_measured_on_redis(tmp_path: Path) -> None:
    measured = run("redis", tmp_path, "--only", "handled,latency")
    assert measured["handled"]["figures"]["carteiro / best peer (Huey)"] > 0
    assert measured["handled"]["figures"]["carteiro / bare loop"] > 0
    assert set(measured["latency"]["rounds"]) == {"carteiro", "bare loop", "Huey"}


@pytest.mark.slow
@pytest.mark.needs("rabbitmq")
def test_carteiro_and_the_bare_loop_are_measured_on_rabbitmq(tmp_path: Path) -> None:
    measured = run("rabbitmq", tmp_path, "--only", "handled,latency", "--installed", peer="FastStream")
    assert measured["handled"]["figures"]["carteiro / bare loop"] > 0
    assert {"carteiro", "bare loop"} <= set(measured["latency"]["rounds"])


@pytest.mark.slow
@pytest.mark.needs("redis")
def test_tasks_are_measured_with_their_results(tmp_path: Path) -> None:
    measured = run("tasks", tmp_path, "--only", "tasks,trips")
    assert measured["tasks"]["figures"]["carteiro / best peer (Huey)"] > 0
    assert set(measured["trips"]["rounds"]) == {"carteiro", "Huey"}


@pytest.mark.slow
@pytest.mark.needs("redis")
def test_schedules_are_measured_on_sqlite_and_redis(tmp_path: Path) -> None:
    measured = run("schedules", tmp_path, "--only", "lateness,year", peer=None)
    rounds = measured["lateness"]["rounds"]
    assert {name.partition(":")[0] for name in rounds} == {"SQLite", "Redis"}
    assert all(one["p50"] > 0 for some in rounds.values() for one in some)
    assert measured["year"]["figures"]["a year"] > 0


def test_results_replace_what_stood_between_the_markers_of_their_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "page.md"
    (begin, end), (other, other_end) = page.marks("sqlite"), page.marks("redis")
    path.write_text(f"before\n{other}\nkept\n{other_end}\n{begin}\nold\n{end}\nafter\n")
    monkeypatch.setattr(page, "PAGE", path)
    figure = Figure("ours / theirs", 0.25, at_least=0.5)
    results = [Result("Speed", "As it is.", ("", "rate"), [("ours", "1")], [figure])]
    page.write("sqlite", results, {"date": "today"}, "bench", "![what it says](picture.png)")
    text = path.read_text()
    assert text.startswith(f"before\n{other}\nkept\n{other_end}\n{begin}\n\n![what it says](picture.png)\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| Speed | ours / theirs | 0.25 × | at least 0.5 × | ✗ falls short |" in text
