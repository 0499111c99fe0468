"""How many tasks one process sends a second, each safe when its call returns."""

from __future__ import annotations

import functools
import statistics

import msgspec

from benchmarks.bench import Bench, Figure, Result, rates
from benchmarks.contestants.publishing import CONCURRENT
from benchmarks.measurements.handled import against_peers
from benchmarks.measurements.publishing import MODES, published
from benchmarks.systems.base import Role


def measure(bench: Bench) -> Result:
    calls = {
        f"{MODES[mode]}: {one.name}": functools.partial(published, bench, one, mode)
        for mode in ("one", "concurrent")
        for one in bench.contestants
        if mode in one.publishes
    }
    paces = bench.in_turns(calls)
    figures: list[Figure] = []
    for mode in ("one", "concurrent"):
        before = f"{MODES[mode]}: "
        some = {name.removeprefix(before): found for name, found in paces.items() if name.startswith(before)}
        found = against_peers(bench, some, bench.one(Role.OURS).name, None)
        figures += [msgspec.structs.replace(figure, name=f"{MODES[mode]}, {figure.name}") for figure in found]
    return Result(
        "Tasks sent a second",
        "`delay`, and what each has in its place, while no worker runs. One by one each is awaited before the next; of "
        f"a library that blocks, each blocks. {CONCURRENT} at once: so many callers, each of which awaits its own; a "
        "library that blocks has no such thing.",
        ("", "sent/s, median", "best round", "CPU a task"),
        [
            [name, *rates([pace.rate for pace in some]), f"{statistics.median(pace.cpu for pace in some):,.1f} µs"]
            for name, some in paces.items()
        ],
        figures,
        msgspec.to_builtins(paces),
    )
