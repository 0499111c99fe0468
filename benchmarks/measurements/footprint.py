"""The memory of a worker process."""

from __future__ import annotations

import statistics

from benchmarks.bench import Bench, Figure, Result
from benchmarks.contest import carteiro, publish, work
from benchmarks.pace import watch
from benchmarks.processes import memory
from benchmarks.systems.base import Role

IDLE = "text bodies, idle"
WORKING = "pydantic bodies, at work"


def measure(bench: Bench) -> Result:
    count = bench.size(50_000)
    found = bench.in_turns({IDLE: lambda: _idle(bench), WORKING: lambda: _working(bench, count)})
    table = {
        name: {kind: statistics.median(one[kind] for one in some) for kind in ("RSS", "PSS")}
        for name, some in found.items()
    }
    bound = bench.system.bounds.memory
    return Result(
        "Memory of a worker process",
        f"`carteiro run` once it is ready, and after it has handled {count:,} messages. RSS, and PSS, where what is "
        "shared with other processes counts for its part.",
        ("", "RSS", "PSS"),
        [[name, f"{kinds['RSS']:.1f} MB", f"{kinds['PSS']:.1f} MB"] for name, kinds in table.items()],
        [Figure(f"RSS, {name}", table[name]["RSS"], "MB", at_most=bound) for name in (IDLE, WORKING)],
        table,
    )


def _idle(bench: Bench) -> dict[str, float]:
    with bench.system.fresh() as url, carteiro("idle_app", url) as running:
        running.ready()
        return memory(running.processes[0].pid)


def _working(bench: Bench, count: int) -> dict[str, float]:
    ours = bench.one(Role.OURS)
    with bench.system.fresh() as url:
        publish(ours, url, "many", count * 6 // 5, filling=True)
        with work(ours, url, every=count // 25) as running:
            watch(running, count * 9 // 10, warm_up=count // 10)
            return memory(running.processes[0].pid)
