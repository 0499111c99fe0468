"""What one chord of very many takes: time, memory of the worker, bytes in the server."""

from __future__ import annotations

import functools
import statistics
import threading
from collections.abc import Callable

import msgspec
import redis

from benchmarks.bench import Bench, Figure, Result, ratio
from benchmarks.contest import QUIET, call, work
from benchmarks.contestants.numbers import MANY, PATIENCE
from benchmarks.systems.base import Contestant, Role

LOOK = 0.05
"""Seconds between two looks at what is in use."""


class Cost(msgspec.Struct, frozen=True):
    """`seconds` until the result is there; `memory` is the RSS of the largest process of the worker, in MB, at its
    peak; `most` and `left` are bytes in the server for each member, at their peak and when it is done."""

    seconds: float
    memory: float
    most: float
    left: float


def measure(bench: Bench) -> Result:
    size = bench.size(MANY)
    composing = [one for one in bench.contestants if one.composes]
    found = bench.in_turns({one.name: functools.partial(_cost, bench, one, size) for one in composing})
    ours = found[bench.one(Role.OURS).name]
    figures: list[Figure] = []
    for name in found.keys() & set(bench.peers()):
        theirs = found[name]
        figures.append(Figure(f"time, {name} / carteiro", _ratio(theirs, ours, lambda cost: cost.seconds)))
        figures.append(Figure(f"bytes at the peak, carteiro / {name}", _ratio(ours, theirs, lambda cost: cost.most)))
    return Result(
        f"One chord of {size:,}",
        "From the call that starts it to its result. Memory is the RSS of the largest process of the worker, at its "
        "peak. Bytes are what the server has in use for each member more than before: at the peak, and at the end, "
        "when the results are kept.",
        ("", "time", "worker's memory", "bytes a member, peak", "at the end"),
        [
            [
                name,
                f"{_median(some, lambda cost: cost.seconds):,.2f} s",
                f"{_median(some, lambda cost: cost.memory):,.0f} MB",
                f"{_median(some, lambda cost: cost.most):,.0f}",
                f"{_median(some, lambda cost: cost.left):,.0f}",
            ]
            for name, some in found.items()
        ],
        figures,
        msgspec.to_builtins(found),
    )


def _median(costs: list[Cost], field: Callable[[Cost], float]) -> float:
    return statistics.median(map(field, costs))


def _ratio(ours: list[Cost], theirs: list[Cost], field: Callable[[Cost], float]) -> float:
    return ratio([field(cost) for cost in ours], [field(cost) for cost in theirs])


def _cost(bench: Bench, contestant: Contestant, size: int) -> Cost:
    with (
        bench.system.fresh() as url,
        redis.Redis.from_url(url) as client,
        work(contestant, url, every=QUIET) as working,
    ):

        def used() -> int:
            return int(client.info("memory")["used_memory"])

        before = used()
        most, memory = before, 0.0
        over = threading.Event()

        def watch() -> None:
            nonlocal most, memory
            while not over.wait(LOOK):
                most, memory = max(most, used()), max(memory, working.costs()[1])

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            with call(contestant, url, "chords", 1, size) as calling:
                told = calling.first("called", PATIENCE)
                left = used()
        finally:
            over.set()
            watching.join()
    return Cost(float(told["seconds"]), memory, (most - before) / size, (left - before) / size)
