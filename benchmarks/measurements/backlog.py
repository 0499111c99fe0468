"""Whether a long backlog, or many messages that wait for their time, slow a worker down."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec

from benchmarks.bench import Bench, Figure, Result
from benchmarks.contestants import carteiro_app
from benchmarks.measurements.handled import COLUMNS, of, rows
from benchmarks.pace import Pace, watch
from benchmarks.processes import Running, carteiro, fresh_file, url

HOUR = 3600.0


def measure(bench: Bench) -> Result:
    count = bench.size(50_000)
    long, scheduled = bench.size(1_000_000), bench.size(100_000)
    names = "1,000 waiting", f"{long:,} waiting", f"1,000 waiting, {scheduled:,} delayed"
    with contextlib.ExitStack() as stack:
        few, many, delayed = (stack.enter_context(fresh_file()) for _ in names)
        bench.say(f"filling files with {long:,} and {scheduled:,} messages")
        for path, waiting in ((few, 1_000), (many, long), (delayed, 1_000)):
            asyncio.run(carteiro_app.fill(url(path), waiting))
        asyncio.run(carteiro_app.fill(url(delayed), scheduled, delay=HOUR))
        paces = bench.in_turns(
            {
                names[0]: lambda: _pace(few, count),
                names[1]: lambda: _pace(many, count),
                names[2]: lambda: _pace(delayed, count),
            }
        )
    return Result(
        "The length of the backlog",
        "The worker publishes 500 messages for each 500 that it handles, so that the backlog stays as long as it was; "
        "the rate holds both. DESIGN: the same rate, within 20 %.",
        COLUMNS,
        rows(paces),
        [
            Figure(f"{long:,} waiting / 1,000", of(paces, names[1], names[0]), at_least=0.8),
            Figure(f"{scheduled:,} delayed beside / none", of(paces, names[2], names[0]), at_least=0.8),
        ],
        msgspec.to_builtins(paces),
    )


def _pace(path: str, count: int) -> Pace:
    with Running(carteiro("feeding_app"), environment={"CARTEIRO_BROKER": url(path)}) as running:
        return watch(running, count, warm_up=count // 10)
