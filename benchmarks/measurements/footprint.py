"""The memory of a worker process."""

from __future__ import annotations

import asyncio
import statistics

from benchmarks.bench import Bench, Figure, Result
from benchmarks.contestants import carteiro_app
from benchmarks.contestants.orders import FILE_VARIABLE
from benchmarks.measurements.handled import SPARE
from benchmarks.pace import watch
from benchmarks.processes import Running, carteiro, fresh_file, huey, memory, url


def measure(bench: Bench) -> Result:
    count = bench.size(50_000)
    found = bench.in_turns(
        {
            "carteiro, text bodies, idle": _idle,
            "carteiro, pydantic bodies, at work": lambda: _working(count),
            "Huey, pydantic bodies, idle": _huey,
        }
    )
    table = {
        name: {kind: statistics.median(one[kind] for one in some) for kind in ("RSS", "PSS")}
        for name, some in found.items()
    }
    return Result(
        "Memory of a worker process",
        f"`carteiro run` once it is ready, and after it has handled {count:,} messages. RSS, and PSS, where what is "
        "shared with other processes counts for its part.",
        ("", "RSS", "PSS"),
        [[name, f"{kinds['RSS']:.1f} MB", f"{kinds['PSS']:.1f} MB"] for name, kinds in table.items()],
        [
            Figure("RSS, text bodies", table["carteiro, text bodies, idle"]["RSS"], "MB", at_most=45),
            Figure("RSS, pydantic bodies", table["carteiro, pydantic bodies, at work"]["RSS"], "MB", at_most=45),
        ],
        table,
    )


def _idle() -> dict[str, float]:
    with (
        fresh_file() as path,
        Running(carteiro("idle_app"), environment={"CARTEIRO_BROKER": url(path)}) as running,
    ):
        running.ready()
        return memory(running.processes[0].pid)


def _working(count: int) -> dict[str, float]:
    with fresh_file() as path:
        asyncio.run(carteiro_app.fill(url(path), count + SPARE))
        with Running(carteiro("carteiro_app"), environment={"CARTEIRO_BROKER": url(path)}) as running:
            watch(running, count - SPARE // 2, warm_up=SPARE // 2)
            return memory(running.processes[0].pid)


def _huey() -> dict[str, float]:
    from benchmarks.contestants.huey_tasks import fill

    with fresh_file() as path:
        fill(path, 50)
        with Running(huey(), environment={FILE_VARIABLE: path}) as running:
            running.first("handled")
            return memory(running.processes[0].pid)
