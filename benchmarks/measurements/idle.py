"""What a worker with nothing to do takes of the CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from benchmarks.bench import Bench, Figure, Result
from benchmarks.contest import carteiro
from benchmarks.processes import cpu_seconds

SETTLING = 1.0
"""Seconds until what a start leaves to do is done."""


def measure(bench: Bench) -> Result:
    seconds = 1.0 if bench.quick else 5.0
    found = bench.in_turns(
        {"1 subscription": _share(bench, 1, seconds), "200 subscriptions": _share(bench, 200, seconds)}
    )
    best = {name: statistics.median(some) for name, some in found.items()}
    return Result(
        "An idle worker",
        f"CPU time of all threads of `carteiro run` in {seconds:g} s without a message. DESIGN: 200 subscriptions idle "
        "near 0 %; one percent is what we take that to be.",
        ("", "CPU"),
        [[name, f"{share:.2f} %"] for name, share in best.items()],
        [Figure("200 subscriptions", best["200 subscriptions"], "%", at_most=1.0)],
        found,
    )


def _share(bench: Bench, subscriptions: int, seconds: float) -> Callable[[], float]:
    def share() -> float:
        with (
            bench.system.fresh() as url,
            carteiro("idle_app", url, BENCH_SUBSCRIPTIONS=str(subscriptions)) as running,
        ):
            running.ready()
            time.sleep(SETTLING)
            pid = running.processes[0].pid
            before = cpu_seconds(pid)
            time.sleep(seconds)
            return (cpu_seconds(pid) - before) / seconds * 100

    return share
