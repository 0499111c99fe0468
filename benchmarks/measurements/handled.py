"""How many messages one worker process handles a second."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Sequence

import msgspec

from benchmarks.bench import Bench, Figure, Result, rates, ratio
from benchmarks.contestants import bare_file, carteiro_app, huey_tasks
from benchmarks.contestants.orders import FILE_VARIABLE
from benchmarks.pace import Pace, watch
from benchmarks.processes import Running, carteiro, fresh_file, huey, module, url

SPARE = 10_000
"""Messages that are left when the measuring ends, so that the end of a backlog is never part of it."""
START = 150_000
"""Messages for one worker to handle while another one starts."""


def measure(bench: Bench) -> Result:
    many, few = bench.size(100_000), bench.size(5_000)
    paces = bench.in_turns(
        {
            "carteiro": lambda: carteiro_pace(many),
            "bare loop": lambda: bare_pace("handle", many),
            "its calls alone": lambda: bare_pace("calls", many),
            "Huey": lambda: huey_pace(few),
        }
    )
    return Result(
        "Messages handled a second, one worker process",
        "A backlog is waiting; the handler is async and does nothing, the body a pydantic model, with leases, retries "
        "and dead letters on, and no line logged. The bare loop is `benchmarks/contestants/bare_worker.py`; its calls "
        "alone claim and settle without decoding and handler. Huey runs its own consumer with `fsync=True`.",
        COLUMNS,
        rows(paces),
        [
            Figure("carteiro / Huey", of(paces, "carteiro", "Huey"), at_least=10),
            Figure("carteiro / bare loop", of(paces, "carteiro", "bare loop"), at_least=0.5),
            Figure("carteiro / calls alone", of(paces, "carteiro", "its calls alone")),
            Figure("CPU a message, bare loop / carteiro", cpu_ratio(paces, "bare loop", "carteiro")),
        ],
        msgspec.to_builtins(paces),
    )


COLUMNS = ("", "handled/s, median", "best round", "CPU a message")


def rows(paces: dict[str, list[Pace]]) -> Sequence[Sequence[str]]:
    return [
        [name, *rates([pace.rate for pace in some]), f"{statistics.median(pace.cpu for pace in some):,.1f} µs"]
        for name, some in paces.items()
    ]


def of(paces: dict[str, list[Pace]], ours: str, theirs: str) -> float:
    return ratio([pace.rate for pace in paces[ours]], [pace.rate for pace in paces[theirs]])


def cpu_ratio(paces: dict[str, list[Pace]], ours: str, theirs: str) -> float:
    return ratio([pace.cpu for pace in paces[ours]], [pace.cpu for pace in paces[theirs]])


def carteiro_pace(count: int, *options: str, workers: int = 1) -> Pace:
    with fresh_file() as path:
        asyncio.run(carteiro_app.fill(url(path), _backlog(count, workers)))
        with Running(carteiro("carteiro_app", *options), environment={"CARTEIRO_BROKER": url(path)}) as running:
            return watch(running, count, warm_up=count // 10, workers=workers)


def bare_pace(mode: str, count: int, workers: int = 1) -> Pace:
    commands = [module("bare_worker", mode)] * workers
    return _on_file(lambda path: bare_file.fill(path, _backlog(count, workers)), commands, count, workers)


def huey_pace(count: int, *options: str, workers: int = 1) -> Pace:
    return _on_file(lambda path: huey_tasks.fill(path, count * 2 * workers), [huey(*options)], count, workers)


def _backlog(count: int, workers: int) -> int:
    return count * 3 // 2 + SPARE + START * (workers - 1)


def _on_file(fill: Callable[[str], None], commands: Sequence[Sequence[str]], count: int, workers: int) -> Pace:
    with fresh_file() as path:
        fill(path)
        with Running(*commands, environment={FILE_VARIABLE: path}) as running:
            return watch(running, count, warm_up=count // 10, workers=workers)
