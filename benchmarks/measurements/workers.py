"""Two worker processes on one system."""

from __future__ import annotations

import functools

import msgspec

from benchmarks.bench import Bench, Figure, Result
from benchmarks.measurements.handled import COLUMNS, against_peers, of, pace, rows
from benchmarks.systems.base import Role

ONE = "carteiro, one"


def measure(bench: Bench) -> Result:
    ours, bare = bench.one(Role.OURS), bench.one(Role.BARE)
    two = {one.name: functools.partial(pace, bench, one, 2) for one in bench.contestants if one.role is not Role.CALLS}
    paces = bench.in_turns({ONE: functools.partial(pace, bench, ours), **two})
    return Result(
        "Messages handled a second, two worker processes",
        f"As before, with two workers; counted while both work. {bench.system.place}",
        COLUMNS,
        rows(paces),
        [
            Figure("two workers / one", of(paces, ours.name, ONE)),
            Figure("carteiro / bare loop", of(paces, ours.name, bare.name)),
            *against_peers(bench, paces, ours.name, None),
        ],
        msgspec.to_builtins(paces),
    )
