"""A contestant's workers and publisher, started on a system."""

from __future__ import annotations

from benchmarks.environments import program
from benchmarks.processes import Report, Running
from benchmarks.systems.base import Contestant

QUIET = 1 << 30
"""So many messages that a worker never tells its count: whoever is not listened to must not fill the pipe."""


def work(contestant: Contestant, url: str, *, workers: int = 1, every: int = 1) -> Running:
    """So many worker processes, each of which tells its count at `every` messages."""
    name, *options = contestant.worker
    command = [program(contestant, name), *options]
    environment = {**_broker(url), **contestant.settings, "BENCH_EVERY": str(every)}
    return Running(*[command] * workers, environment=environment)


def publish(contestant: Contestant, url: str, mode: str, count: int, *, filling: bool = False) -> Report:
    """Publish so many orders in a process of its own; `filling` when it is not what is measured."""
    with _publisher(contestant, url, mode, count, **({"BENCH_FILLING": "1"} if filling else {})) as running:
        return running.first("published")


def stamp(contestant: Contestant, url: str) -> Running:
    """Publish the time, at a fixed rate, until it is stopped."""
    return _publisher(contestant, url, "paced", 0)


def call(contestant: Contestant, url: str, mode: str, count: int, size: int = 1) -> Running:
    """Send tasks and wait for their results, as `contestants/calling.py` says."""
    command = [program(contestant, "python"), "-m", "benchmarks.contestants.calling", contestant.module, mode]
    return Running([*command, str(count), str(size)], environment=_broker(url))


def carteiro(app: str, url: str, *, every: int = 1, **environment: str) -> Running:
    """`carteiro run` of another app than that of the contest."""
    command = [program(None, "carteiro"), "run", f"benchmarks.contestants.{app}:app", "--json"]
    return Running(command, environment={**_broker(url), "BENCH_EVERY": str(every), **environment})


def program_of(module: str, url: str, *words: str) -> Running:
    """A program of carteiro's, by what it is given on its command line."""
    command = [program(None, "python"), "-m", f"benchmarks.contestants.{module}", *words]
    return Running(command, environment=_broker(url))


def _publisher(contestant: Contestant, url: str, mode: str, count: int, **environment: str) -> Running:
    python = program(contestant, "python")
    command = [python, "-m", "benchmarks.contestants.publishing", contestant.module, mode, str(count)]
    return Running(command, environment={**_broker(url), **environment})


def _broker(url: str) -> dict[str, str]:
    return {"BENCH_BROKER": url, "CARTEIRO_BROKER": url}
