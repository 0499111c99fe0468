"""Two worker processes on one file."""

from __future__ import annotations

import msgspec

from benchmarks.bench import Bench, Figure, Result
from benchmarks.measurements.handled import COLUMNS, bare_pace, carteiro_pace, huey_pace, of, rows


def measure(bench: Bench) -> Result:
    many, few = bench.size(100_000), bench.size(5_000)
    paces = bench.in_turns(
        {
            "carteiro, 1": lambda: carteiro_pace(many),
            "carteiro, 2": lambda: carteiro_pace(many, "--workers", "2", workers=2),
            "bare loop, 2": lambda: bare_pace("handle", many, workers=2),
            "Huey, 2": lambda: huey_pace(few, "-w", "2", "-k", "process", workers=2),
        }
    )
    return Result(
        "Messages handled a second, two worker processes on one file",
        "As before, with `carteiro run --workers 2` and Huey's `-w 2 -k process`; counted while both work. A file has "
        "one writer at a time, so what a second process adds is its decoding and handling.",
        COLUMNS,
        rows(paces),
        [
            Figure("two workers / one", of(paces, "carteiro, 2", "carteiro, 1")),
            Figure("carteiro / bare loop", of(paces, "carteiro, 2", "bare loop, 2")),
            Figure("carteiro / Huey", of(paces, "carteiro, 2", "Huey, 2")),
        ],
        msgspec.to_builtins(paces),
    )
