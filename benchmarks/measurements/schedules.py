"""Schedules: how late they are, what those cost that are not due for long, and a year of one in a test."""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections.abc import Mapping, Sequence

import msgspec

from benchmarks.bench import Bench, Figure, Result
from benchmarks.contest import carteiro, program_of
from benchmarks.contestants.carteiro_schedules import AT_ONCE
from benchmarks.measurements.idle import SETTLING
from benchmarks.measurements.latency import RANKS, percentile
from benchmarks.processes import Report, cpu_seconds
from benchmarks.systems.base import System
from benchmarks.systems.schedules import Schedules

APP = "carteiro_schedules"
COUNT = 1_000
FAR = 100_000
SECONDS = 10.0
FIRST = 2.0
"""Seconds from the start in which a worker catches up with what was due meanwhile."""
LONG = 600.0
"""Seconds after which those who add very many are given up."""
SPECS = {
    "spread": "each once in 10 s, 100 at each full second",
    "each": "each once a second, not at the same time",
    "same": "all at the same second, each 5 s",
}


def lateness(bench: Bench) -> Result:
    seconds = SECONDS / 2 if bench.quick else SECONDS
    found = bench.in_turns(
        {
            f"{place}: {how}": functools.partial(_lateness, system, seconds, spec)
            for place, system in _places(bench).items()
            for spec, how in SPECS.items()
        }
    )
    medians = {name: _medians(some) for name, some in found.items()}
    return Result(
        f"Lateness with {COUNT:,} schedules",
        f"From a due time to the handler of what was sent then: {COUNT:,} schedules, and one `carteiro run`, which "
        "fires them and handles what they send. At each due time the last waits for those before it.",
        ("", "p50", "p99", "worst"),
        [[name, *(f"{ranks[rank]:,.1f} ms" for rank in RANKS)] for name, ranks in medians.items()],
        [Figure(f"p99, {name}", ranks[99], "ms", at_most=bench.system.bounds.p99) for name, ranks in medians.items()],
        {name: _ranks(some) for name, some in found.items()},
    )


class Cost(msgspec.Struct, frozen=True):
    """`starting` in seconds, `idle` in percent of a CPU, and `late` the p99 of other schedules in milliseconds."""

    starting: float
    idle: float
    late: float


def far_ahead(bench: Bench) -> Result:
    far, seconds = bench.size(FAR), 2.0 if bench.quick else 5.0
    with contextlib.ExitStack() as stack:
        urls = {
            (place, count): stack.enter_context(system.fresh())
            for place, system in _places(bench).items()
            for count in (0, far)
        }
        adding: dict[str, float] = {}
        for (place, count), url in urls.items():
            bench.say(f"{place}: adding {count:,}")
            adding[place] = _run(url, "add", str(count))["seconds"]
            _start(url)  # compiles what is not compiled yet, as an installation does
        found = bench.in_turns({_named(*one): functools.partial(_cost, url, seconds) for one, url in urls.items()})
    medians = {
        name: Cost(*(statistics.median(getattr(one, field) for one in some) for field in Cost.__struct_fields__))
        for name, some in found.items()
    }
    return Result(
        f"{far:,} that are due once, years ahead",
        f"They are added by {AT_ONCE} calls of `app.schedules.add` at a time. Start is `carteiro run` to ready; idle "
        f"is the CPU time of all its threads in {seconds:g} s without another schedule; and the p99 of lateness is "
        f"that of {COUNT:,} others, of which 100 are due at each full second.",
        ("", "start", "idle", "p99 of others"),
        [
            [name, f"{cost.starting:.2f} s", f"{cost.idle:.2f} %", f"{cost.late:,.1f} ms"]
            for name, cost in medians.items()
        ],
        [
            figure
            for place in adding
            for few, many in [(medians[_named(place, 0)], medians[_named(place, far)])]
            for figure in (
                Figure(f"idle, {place}", many.idle, "%", at_most=1.0),
                Figure(f"start beyond that without, {place}", many.starting - few.starting, "s"),
                Figure(f"p99 of others beside them / without, {place}", many.late / few.late),
                Figure(f"to add one, {place}", adding[place] / far * 1e6, "µs"),
            )
        ],
        {"adding": adding, **msgspec.to_builtins(found)},
    )


def year(bench: Bench) -> Result:
    found = bench.in_turns({"a daily task for a year": _year})["a daily task for a year"]
    return Result(
        "A year of a daily schedule in a test",
        "`await t.advance(days=365)` under TestApp, the task done 365 times. The figure is of the best round, since "
        "other load only adds.",
        ("", "median", "best round"),
        [["a daily task for a year", f"{statistics.median(found):.2f} s", f"{min(found):.2f} s"]],
        [Figure("a year", min(found), "s", at_most=1.0)],
        {"year": found},
    )


def _places(bench: Bench) -> Mapping[str, System]:
    assert isinstance(bench.system, Schedules)
    return bench.system.places


def _lateness(system: System, seconds: float, spec: str) -> list[float]:
    with system.fresh() as url:
        return _late(url, seconds, spec)


def _late(url: str, seconds: float, spec: str) -> list[float]:
    """In seconds, of each firing in that time."""
    found: list[float] = []
    with carteiro(APP, url, BENCH_SCHEDULES=str(COUNT), BENCH_SPEC=spec) as running:
        running.ready()
        begin = time.monotonic() + FIRST
        while (now := time.monotonic()) < begin + seconds or not found:
            told = running.next()
            if now >= begin:
                found += [late for report in told for late in report.get("late", ())]
    return found


def _named(place: str, count: int) -> str:
    return f"{place}: {count:,}" if count else f"{place}: none"


def _cost(url: str, seconds: float) -> Cost:
    start = time.perf_counter()
    with carteiro(APP, url) as running:
        running.ready()
        starting = time.perf_counter() - start
        time.sleep(SETTLING)
        pid = running.processes[0].pid
        before = cpu_seconds(pid)
        time.sleep(seconds)
        idle = (cpu_seconds(pid) - before) / seconds * 100
    late = percentile(_late(url, seconds, "spread"), 99)
    _start(url)  # without those others: they are gone for the next round
    return Cost(starting, idle, late)


def _start(url: str) -> None:
    with carteiro(APP, url) as running:
        running.ready()


def _year() -> float:
    return float(_run("memory://", "year")["year"])


def _run(url: str, *words: str) -> Report:
    """What this program tells."""
    with program_of(APP, url, *words) as running:
        return running.first("pid", LONG)


def _medians(some: Sequence[Sequence[float]]) -> dict[int, float]:
    return {rank: statistics.median(percentile(one, rank) for one in some) for rank in RANKS}


def _ranks(some: Sequence[Sequence[float]]) -> list[dict[str, float]]:
    return [{f"p{rank}": percentile(one, rank) for rank in RANKS} for one in some]
