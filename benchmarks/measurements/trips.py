"""From the call that sends a task to its result, by way of a worker in another process."""

from __future__ import annotations

import functools

from benchmarks.bench import Bench, Result
from benchmarks.contest import QUIET, call, work
from benchmarks.measurements.latency import result
from benchmarks.systems.base import Contestant

TRIPS = 500


def measure(bench: Bench) -> Result:
    count = bench.size(TRIPS)
    return result(
        bench,
        bench.in_turns({one.name: functools.partial(_delays, bench, one, count) for one in bench.contestants}),
        "From a call to its result",
        f"{count} tasks, one after another, each with its result, from one process to a worker in another, which has "
        "nothing else to do. Taskiq, SAQ, ARQ and Huey poll for results, here each 2 ms.",
    )


def _delays(bench: Bench, contestant: Contestant, count: int) -> list[float]:
    delays: list[float] = []
    with (
        bench.system.fresh() as url,
        work(contestant, url, every=QUIET),
        call(contestant, url, "trips", count) as calling,
    ):
        while len(delays) < count:
            delays += [report["trip"] for report in calling.next() if "trip" in report]
    return delays
