"""How many messages one process publishes a second, each safe on the disk when its call returns."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable

from benchmarks.bench import Bench, Figure, Result, rates, ratio
from benchmarks.contestants import bare_file, carteiro_app
from benchmarks.contestants.orders import FILE_VARIABLE
from benchmarks.pace import Pace
from benchmarks.processes import Running, fresh_file, module, url

# DESIGN has bounds for Redis; SQLite is held to the same: 0.8 × bare one by one, 10 × the best peer in bulk.
MODES = {"one": "one by one", "concurrent": "200 concurrent publishers", "many": "publish_many"}


def measure(bench: Bench) -> Result:
    counts = {"one": bench.size(5_000), "concurrent": bench.size(50_000), "many": bench.size(200_000)}
    few = {mode: bench.size(5_000) for mode in MODES}
    paces = {
        mode: bench.in_turns(
            {
                f"carteiro, {name}": _contestant(_carteiro, mode, counts[mode]),
                f"bare, {name}": _contestant(_bare, mode, counts[mode] if mode == "many" else few[mode]),
                f"Huey, {name}": _contestant(_huey, mode, few[mode]),
            }
        )
        for mode, name in MODES.items()
    }

    def against(other: str, mode: str) -> float:
        ours, theirs = (paces[mode][f"{who}, {MODES[mode]}"] for who in ("carteiro", other))
        return ratio([pace.rate for pace in ours], [pace.rate for pace in theirs])

    return Result(
        "Messages published a second, to one group",
        "`synchronous=FULL` for all. Bare is one transaction a message, or one for 5,000, straight on `sqlite3`; Huey "
        "has no call for many. Concurrent publishers share carteiro's commits.",
        ("", "published/s, median", "best round", "CPU a message"),
        [
            [name, *rates([pace.rate for pace in some]), f"{statistics.median(pace.cpu for pace in some):,.1f} µs"]
            for by_name in paces.values()
            for name, some in by_name.items()
        ],
        [
            Figure("one by one: carteiro / bare", against("bare", "one"), at_least=0.8),
            Figure("one by one: carteiro / Huey", against("Huey", "one")),
            Figure("200 concurrent: carteiro / bare", against("bare", "concurrent")),
            Figure("publish_many: carteiro / Huey", against("Huey", "many"), at_least=10),
            Figure("publish_many: carteiro / bare", against("bare", "many")),
        ],
        {
            name: [{"rate": pace.rate, "cpu_us": pace.cpu} for pace in some]
            for by_name in paces.values()
            for name, some in by_name.items()
        },
    )


def _contestant(publish: Callable[[str, int], Pace], mode: str, count: int) -> Callable[[], Pace]:
    return lambda: publish(mode, count)


def _carteiro(mode: str, count: int) -> Pace:
    with fresh_file() as path:
        asyncio.run(carteiro_app.fill(url(path), 1))
        return _published("carteiro_publisher", mode, count, CARTEIRO_BROKER=url(path))


def _bare(mode: str, count: int) -> Pace:
    with fresh_file() as path:
        bare_file.fill(path, 1)
        return _published("bare_publisher", mode, count, **{FILE_VARIABLE: path})


def _huey(mode: str, count: int) -> Pace:
    with fresh_file() as path:
        return _published("huey_publisher", mode, count, **{FILE_VARIABLE: path})


def _published(publisher: str, mode: str, count: int, **environment: str) -> Pace:
    with Running(module(publisher, mode, str(count)), environment=environment) as running:
        told = running.first("published")
    return Pace(told["published"] / told["seconds"], told["cpu"] / told["published"] * 1e6)
