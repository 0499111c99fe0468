"""The benchmarks run, and print the ratios that they are there for. How fast anything was is not asked here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import page
from benchmarks.bench import Figure, Result

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_quick_run_puts_carteiro_beside_the_bare_loop_and_huey(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "handled", "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "carteiro / bare loop: " in done.stdout
    figures = json.loads((tmp_path / "out.json").read_text())["measurements"]["handled"]["figures"]
    assert figures["carteiro / Huey"] > 0


def test_results_replace_what_stood_between_the_markers_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    monkeypatch.setattr(page, "PAGE", path)
    figure = Figure("ours / theirs", 0.25, at_least=0.5)
    page.write([Result("Speed", "As it is.", ("", "rate"), [("ours", "1")], [figure])], {"date": "today"}, "bench")
    text = path.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| Speed | ours / theirs | 0.25 × | at least 0.5 × | ✗ falls short |" in text
