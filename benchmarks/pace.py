"""From what workers tell of their counts to a rate and the CPU time of a message."""

from __future__ import annotations

import msgspec

from benchmarks.processes import Ended, Report, Running


class Pace(msgspec.Struct, frozen=True):
    """Messages a second of all processes together, and microseconds of CPU time for each message."""

    rate: float
    cpu: float


def watch(running: Running, count: int, *, warm_up: int, workers: int = 1) -> Pace:
    """The pace over about `count` messages, from when each of so many workers has handled `warm_up`.

    Starting, warming up, and the end of the backlog are left out: only while all of them work is time counted.
    """
    first: dict[int, Report] = {}
    last: dict[int, Report] = {}
    try:
        while _handled(first, last) < count:
            for report in running.next():
                if report.get("handled", 0) < warm_up:
                    continue
                (last if len(first) == workers else first)[report["pid"]] = report
    except Ended:  # the bare loop ends with its backlog
        if _handled(first, last) < count / 2:
            raise
    rate = sum(
        (report["handled"] - first[pid]["handled"]) / (report["at"] - first[pid]["at"]) for pid, report in last.items()
    )
    cpu = sum(report["cpu"] - first[pid]["cpu"] for pid, report in last.items())
    return Pace(rate, cpu / _handled(first, last) * 1e6)


def _handled(first: dict[int, Report], last: dict[int, Report]) -> int:
    return sum(report["handled"] - first[pid]["handled"] for pid, report in last.items())
