"""From the call of publish in one process to the handler in another."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Mapping, Sequence

from benchmarks.bench import Bench, Figure, Result, ratio
from benchmarks.contest import stamp, work
from benchmarks.contestants.publishing import RATE
from benchmarks.systems.base import Contestant, Role

SECONDS = 2.5
SETTLING = 0.5
"""Seconds from the first that is handled, in which a worker handles what had come before it was there."""
RANKS = (50, 99, 100)


def measure(bench: Bench) -> Result:
    count = bench.size(SECONDS * RATE)
    waiting = [one for one in bench.contestants if one.waits and one.role is not Role.CALLS]
    delays = bench.in_turns({one.name: functools.partial(_delays, bench, one, count) for one in waiting})
    return result(
        bench,
        delays,
        "Latency across processes",
        f"{RATE} messages a second from one process to a worker in another, which has nothing else to do; the time "
        "from before the call of publish to the handler. A worker that cannot keep up falls behind.",
    )


def result(bench: Bench, delays: Mapping[str, Sequence[Sequence[float]]], title: str, how: str) -> Result:
    """Of each contestant's delays in each round, in seconds."""
    found = {name: [{rank: percentile(one, rank) for rank in RANKS} for one in some] for name, some in delays.items()}
    medians = {name: {rank: statistics.median(one[rank] for one in some) for rank in RANKS}
               for name, some in found.items()}  # fmt: skip
    ours = medians[bench.one(Role.OURS).name]
    return Result(
        title,
        how,
        ("", "p50", "p99", "worst"),
        [[name, *(f"{milliseconds:,.2f} ms" for milliseconds in ranks.values())] for name, ranks in medians.items()],
        [
            Figure("p50", ours[50], "ms", at_most=bench.system.bounds.p50),
            Figure("p99", ours[99], "ms", at_most=bench.system.bounds.p99),
            *_against_peers(bench, {name: [one[50] for one in some] for name, some in found.items()}),
        ],
        {name: [{"p50": one[50], "p99": one[99]} for one in some] for name, some in found.items()},
    )


def _against_peers(bench: Bench, p50s: Mapping[str, Sequence[float]]) -> list[Figure]:
    """Ours against the best peer of each round; nothing where no peer takes part."""
    theirs = {name: some for name, some in p50s.items() if name in bench.peers()}
    if not theirs:
        return []
    name = min(theirs, key=lambda name: statistics.median(theirs[name]))
    least = [min(values) for values in zip(*theirs.values(), strict=True)]
    ours = ratio(p50s[bench.one(Role.OURS).name], least)
    return [Figure(f"p50, carteiro / best peer ({name})", ours, at_most=bench.system.bounds.p50_over_peer)]


def percentile(delays: Sequence[float], rank: int) -> float:
    """In milliseconds."""
    ordered = sorted(delays)
    return ordered[min(len(ordered) - 1, len(ordered) * rank // 100)] * 1000


def _delays(bench: Bench, contestant: Contestant, count: int) -> list[float]:
    begin: float | None = None
    delays: list[float] = []
    with bench.system.fresh() as url, work(contestant, url) as working, stamp(contestant, url):
        while len(delays) < count:
            told = [report for report in working.next() if "delay" in report]
            if told and begin is None:
                begin = time.monotonic() + SETTLING
            delays += [report["delay"] for report in told if begin is not None and report["sent"] >= begin]
    return delays
