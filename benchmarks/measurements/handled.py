"""How many messages worker processes handle a second, and what a message costs them."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping, Sequence

import msgspec

from benchmarks.bench import Bench, Figure, Result, best, rates, ratio
from benchmarks.contest import publish, work
from benchmarks.pace import Pace, watch
from benchmarks.systems.base import Contestant, Role

SECONDS = 1.0
"""How long each is measured, roughly."""
START = 1.5
"""Seconds' worth of messages for one worker to handle while another one starts."""

Paces = Mapping[str, Sequence[Pace]]
COLUMNS = ("", "handled/s, median", "best round", "CPU a message", "memory")


def measure(bench: Bench) -> Result:
    paces = bench.in_turns({one.name: functools.partial(pace, bench, one) for one in bench.contestants})
    ours, bare, calls = (bench.one(role).name for role in (Role.OURS, Role.BARE, Role.CALLS))
    return Result(
        "Messages handled a second, one worker process",
        "A backlog is waiting; the handler does nothing, the body is a pydantic model, with leases, retries and dead "
        "letters on, and no line logged. The bare loop is `benchmarks/contestants/bare_worker.py`; its calls alone "
        "claim and settle without decoding and handler. CPU time is that of all processes of a worker, memory the RSS "
        f"of the largest. {bench.system.safety}",
        COLUMNS,
        rows(paces),
        [
            *against_peers(bench, paces, ours, bench.system.bounds.handled_over_peer),
            Figure("carteiro / bare loop", of(paces, ours, bare), at_least=bench.system.bounds.handled_over_bare),
            Figure("carteiro / calls alone", of(paces, ours, calls)),
            Figure("CPU a message, bare loop / carteiro", cpu_ratio(paces, bare, ours)),
        ],
        msgspec.to_builtins(paces),
    )


def pace(bench: Bench, contestant: Contestant, workers: int = 1) -> Pace:
    count = bench.size(contestant.handles * SECONDS)
    with bench.system.fresh() as url:
        backlog = count * 3 // 2 + int(contestant.handles * START) * (workers - 1)
        publish(contestant, url, "many", backlog, filling=True)
        with work(contestant, url, workers=workers, every=max(1, count // 25)) as running:
            return watch(running, count, warm_up=count // 10)


def rows(paces: Paces) -> list[list[str]]:
    return [
        [
            name,
            *rates([pace.rate for pace in some]),
            f"{statistics.median(pace.cpu for pace in some):,.1f} µs",
            f"{statistics.median(pace.memory for pace in some):,.0f} MB",
        ]
        for name, some in paces.items()
    ]


def of(paces: Paces, ours: str, theirs: str) -> float:
    return ratio([pace.rate for pace in paces[ours]], [pace.rate for pace in paces[theirs]])


def cpu_ratio(paces: Paces, ours: str, theirs: str) -> float:
    return ratio([pace.cpu for pace in paces[ours]], [pace.cpu for pace in paces[theirs]])


def against_peers(bench: Bench, paces: Paces, ours: str, at_least: float | None) -> list[Figure]:
    """Ours against the best peer of each round; nothing where no peer takes part."""
    theirs = {name: [pace.rate for pace in some] for name, some in paces.items() if name in bench.peers()}
    if not theirs:
        return []
    name, tops = best(theirs)
    return [Figure(f"carteiro / best peer ({name})", ratio([one.rate for one in paces[ours]], tops), at_least=at_least)]
