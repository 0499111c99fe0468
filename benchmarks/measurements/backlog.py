"""Whether a long backlog, or many messages that wait for their time, slow a worker down."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec

from benchmarks.bench import Bench, Figure, Result
from benchmarks.contest import carteiro
from benchmarks.contestants import carteiro_app
from benchmarks.contestants.feeding_app import BATCH
from benchmarks.measurements.handled import COLUMNS, of, rows
from benchmarks.pace import Pace, watch

HOUR = 3600.0
FEW = 1_000
"""What each round starts with, beside a long backlog too: a worker that is stopped has not fed all that it handled."""


def measure(bench: Bench) -> Result:
    count = bench.size(50_000)
    long, scheduled = bench.size(bench.system.bounds.backlog), bench.size(100_000)
    names = f"{FEW:,} waiting", f"{long:,} waiting", f"{FEW:,} waiting, {scheduled:,} delayed"
    with contextlib.ExitStack() as stack:
        few, many, delayed = (stack.enter_context(bench.system.fresh()) for _ in names)
        bench.say(f"filling with {long:,} and {scheduled:,} messages")
        asyncio.run(carteiro_app.fill(many, long))
        asyncio.run(carteiro_app.fill(delayed, scheduled, delay=HOUR))
        paces = bench.in_turns(
            {
                names[0]: lambda: _pace(few, count),
                names[1]: lambda: _pace(many, count),
                names[2]: lambda: _pace(delayed, count),
            }
        )
    return Result(
        "The length of the backlog",
        f"The worker publishes {BATCH} messages for each {BATCH} that it handles, so that the backlog stays as long as "
        "it was; the rate holds both. DESIGN: the same rate, within 20 %.",
        COLUMNS,
        rows(paces),
        [
            Figure(f"{long:,} waiting / {FEW:,}", of(paces, names[1], names[0]), at_least=0.8),
            Figure(f"{scheduled:,} delayed beside / none", of(paces, names[2], names[0]), at_least=0.8),
        ],
        msgspec.to_builtins(paces),
    )


def _pace(url: str, count: int) -> Pace:
    asyncio.run(carteiro_app.fill(url, FEW))
    with carteiro("feeding_app", url, every=BATCH) as running:
        return watch(running, count, warm_up=count // 10)
