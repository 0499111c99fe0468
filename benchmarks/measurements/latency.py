"""From the call of publish in one process to the handler in another."""

from __future__ import annotations

import asyncio
import statistics

from benchmarks.bench import Bench, Figure, Result
from benchmarks.contestants import carteiro_app
from benchmarks.contestants.orders import FILE_VARIABLE
from benchmarks.contestants.publishing import RATE
from benchmarks.processes import Running, carteiro, fresh_file, huey, module, url

WARM_UP = 2 * RATE
"""Messages that are not counted: two seconds, in which the worker starts and handles what had come before it."""


def measure(bench: Bench) -> Result:
    count = bench.size(1_000)
    delays = bench.in_turns({"carteiro": lambda: _carteiro(count), "Huey": lambda: _huey(count)})
    ours = statistics.median(_percentile(some, 50) for some in delays["carteiro"])
    return Result(
        "Latency across processes",
        f"{RATE} messages a second from one process to a worker in another; the time from before the call of publish, "
        "which includes the commit, to the handler. Huey polls, each 0.1 s by default.",
        ("", "p50", "p99", "worst"),
        [
            [name, *(f"{statistics.median(_percentile(one, rank) for one in some):,.2f} ms" for rank in (50, 99, 100))]
            for name, some in delays.items()
        ],
        [
            Figure("p50", ours, "ms", at_most=3.0),
            Figure("p99", statistics.median(_percentile(some, 99) for some in delays["carteiro"]), "ms"),
        ],
        {name: [{"p50": _percentile(one, 50), "p99": _percentile(one, 99)} for one in some]
         for name, some in delays.items()},
    )  # fmt: skip


def _percentile(delays: list[float], rank: int) -> float:
    """In milliseconds."""
    ordered = sorted(delays)
    return ordered[min(len(ordered) - 1, len(ordered) * rank // 100)] * 1000


def _carteiro(count: int) -> list[float]:
    with fresh_file() as path:
        asyncio.run(carteiro_app.fill(url(path), 0))
        return _delays(carteiro("carteiro_app"), "carteiro_publisher", count, CARTEIRO_BROKER=url(path))


def _huey(count: int) -> list[float]:
    with fresh_file() as path:
        return _delays(huey(), "huey_publisher", count, **{FILE_VARIABLE: path})


def _delays(worker: list[str], publisher: str, count: int, **environment: str) -> list[float]:
    published = count + WARM_UP
    with (
        Running(worker, environment={**environment, "BENCH_COUNT": str(published)}) as working,
        Running(module(publisher, "paced", str(published)), environment=environment),
    ):
        delays: list[float] = working.first("delays")["delays"]
    return delays[WARM_UP:]
