"""How many tasks a worker process does a second, their results kept."""

from __future__ import annotations

import functools

import msgspec

from benchmarks.bench import Bench, Result
from benchmarks.measurements.handled import COLUMNS, against_peers, pace, rows
from benchmarks.systems.base import Role


def measure(bench: Bench) -> Result:
    paces = bench.in_turns({one.name: functools.partial(pace, bench, one) for one in bench.contestants})
    ours = bench.one(Role.OURS).name
    return Result(
        "Tasks done a second, one worker process",
        "A backlog is waiting; a task is given a number and gives it back, and its result is kept. CPU time is that of "
        f"all processes of a worker, memory the RSS of the largest. {bench.system.safety}",
        COLUMNS,
        rows(paces),
        against_peers(bench, paces, ours, bench.system.bounds.handled_over_peer),
        msgspec.to_builtins(paces),
    )
