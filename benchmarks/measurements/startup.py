"""How long importing and starting take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from benchmarks.bench import Bench, Figure, Result
from benchmarks.contest import carteiro
from benchmarks.processes import seconds_to_run


def measure(bench: Bench) -> Result:
    for app in ("idle_app", "carteiro_app"):
        _ready(bench, app)  # compiles what is not compiled yet, as an installation does
    times = bench.in_turns(
        {
            "python, nothing imported": _runs("pass"),
            "import asyncio": _runs("import asyncio"),
            "import pydantic": _runs("import pydantic; pydantic.BaseModel"),
            "import carteiro": _runs("import carteiro"),
            "carteiro run to ready, text bodies": lambda: _ready(bench, "idle_app"),
            "carteiro run to ready, pydantic bodies": lambda: _ready(bench, "carteiro_app"),
        }
    )
    best = {name: min(some) for name, some in times.items()}
    bare = best["python, nothing imported"]
    return Result(
        "Start",
        "Wall time of a new process, its files in the system's cache. The figures are of the best round, since other "
        "load only adds; an import is what it takes over an interpreter that imports nothing.",
        ("", "median", "best round"),
        [[name, f"{statistics.median(some):.2f} s", f"{min(some):.2f} s"] for name, some in times.items()],
        [
            Figure("import carteiro", best["import carteiro"] - bare, "s", at_most=0.2),
            Figure("carteiro run to ready", best["carteiro run to ready, pydantic bodies"], "s", at_most=1.0),
            Figure("import asyncio, to compare", best["import asyncio"] - bare, "s"),
            Figure("import pydantic, to compare", best["import pydantic"] - bare, "s"),
        ],
        times,
    )


def _runs(code: str) -> Callable[[], float]:
    return lambda: min(seconds_to_run(code) for _ in range(3))


def _ready(bench: Bench, app: str) -> float:
    with bench.system.fresh() as url:
        start = time.perf_counter()
        with carteiro(app, url) as running:
            running.ready()
            return time.perf_counter() - start
