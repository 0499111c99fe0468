"""How many messages one process publishes a second, each safe on the disk when its call returns."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable

import msgspec

from benchmarks.bench import Bench, Figure, Result, rates, ratio
from benchmarks.contestants import bare_file, carteiro_app
from benchmarks.contestants.orders import FILE_VARIABLE
from benchmarks.pace import Pace
from benchmarks.processes import Running, fresh_file, module, url


def measure(bench: Bench) -> Result:
    # The slow are given less to do. `few` commits each message by itself, and waits for the disk each time.
    few, shared, many = bench.size(2_000), bench.size(50_000), bench.size(200_000)
    contestants: dict[str, Callable[[], Pace]] = {
        "one by one: carteiro": lambda: _carteiro("one", few),
        "one by one: bare": lambda: _bare("one", few),
        "one by one: bare, blocking": lambda: _bare("blocking", few),
        "one by one: Huey, blocking": lambda: _huey("one", few),
        "200 at once: carteiro": lambda: _carteiro("concurrent", shared),
        "200 at once: bare": lambda: _bare("concurrent", few),
        "in bulk: carteiro, publish_many": lambda: _carteiro("many", many),
        "in bulk: bare, 5,000 a commit": lambda: _bare("many", many),
        "in bulk: Huey, has no such call": lambda: _huey("many", few),
    }
    paces = bench.in_turns(contestants)

    def against(ours: str, theirs: str) -> float:
        return ratio([pace.rate for pace in paces[ours]], [pace.rate for pace in paces[theirs]])

    single, concurrent, bulk = (name for name in contestants if "carteiro" in name)
    return Result(
        "Messages published a second, to one group",
        "`synchronous=FULL` for all. Bare is one transaction a message, in a thread of its own, since the loop must "
        "not wait for the disk; blocking, it is on the loop. 200 tasks at once share carteiro's commits. DESIGN has "
        "bounds for Redis, 0.8 × bare one by one and 10 × the best peer in bulk; SQLite is held to the same.",
        ("", "published/s, median", "best round", "CPU a message"),
        [
            [name, *rates([pace.rate for pace in some]), f"{statistics.median(pace.cpu for pace in some):,.1f} µs"]
            for name, some in paces.items()
        ],
        [
            Figure("one by one, carteiro / bare", against(single, "one by one: bare"), at_least=0.8),
            Figure("one by one, carteiro / bare, blocking", against(single, "one by one: bare, blocking")),
            Figure("one by one, carteiro / Huey, blocking", against(single, "one by one: Huey, blocking")),
            Figure("200 at once, carteiro / bare", against(concurrent, "200 at once: bare")),
            Figure("in bulk, carteiro / Huey", against(bulk, "in bulk: Huey, has no such call"), at_least=10),
            Figure("in bulk, carteiro / bare", against(bulk, "in bulk: bare, 5,000 a commit")),
        ],
        msgspec.to_builtins(paces),
    )


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
