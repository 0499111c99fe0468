"""How many chains and chords a second a caller gets done by one worker process."""

from __future__ import annotations

import functools
import statistics

from benchmarks.bench import Bench, Figure, Result, best, rates, ratio
from benchmarks.contest import QUIET, call, work
from benchmarks.contestants.numbers import MEMBERS, PATIENCE, STEPS
from benchmarks.systems.base import Contestant, Role

CHAINS = 1_000
CHORDS = 200


def chains(bench: Bench) -> Result:
    what = f"chains of {STEPS} tasks, each of which takes the result of the one before"
    return _measure(bench, "chains", bench.size(CHAINS), STEPS, STEPS, what)


def chords(bench: Bench) -> Result:
    what = f"chords of {MEMBERS} tasks and a callback, which takes the list of their results"
    return _measure(bench, "chords", bench.size(CHORDS), MEMBERS, MEMBERS + 1, what)


def _measure(bench: Bench, mode: str, count: int, size: int, tasks: int, what: str) -> Result:
    """`tasks` is how many there are in each."""
    composing = [one for one in bench.contestants if one.composes]
    found = bench.in_turns({one.name: functools.partial(_rate, bench, one, mode, count, size) for one in composing})
    theirs = {name: some for name, some in found.items() if name in bench.peers()}
    figures: list[Figure] = []
    if theirs:
        name, tops = best(theirs)
        over = ratio(found[bench.one(Role.OURS).name], tops)
        figures.append(Figure(f"carteiro / {name}", over, at_least=bench.system.bounds.composed_over_peer))
    return Result(
        f"{mode.capitalize()} done a second",
        f"{count:,} {what}. One process starts them all and then waits for all results, with one worker that has "
        "nothing else to do; the time is from the first call to the last result.",
        ("", f"{mode}/s, median", "best round", "tasks/s, median"),
        [[name, *rates(some), f"{statistics.median(some) * tasks:,.0f}"] for name, some in found.items()],
        figures,
        found,
    )


def _rate(bench: Bench, contestant: Contestant, mode: str, count: int, size: int) -> float:
    with (
        bench.system.fresh() as url,
        work(contestant, url, every=QUIET),
        call(contestant, url, mode, count, size) as calling,
    ):
        told = calling.first("called", PATIENCE)
    return count / float(told["seconds"])
