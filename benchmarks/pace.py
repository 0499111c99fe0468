"""From what workers tell of their counts to a rate, the CPU time of a message, and memory."""

from __future__ import annotations

import msgspec

from benchmarks.processes import Ended, Report, Running


class Pace(msgspec.Struct, frozen=True):
    """Messages a second of all workers together, and microseconds of CPU time for each, which is all that a worker's
    processes take. `memory` is the RSS of the largest of them, in MB of 1,048,576 bytes."""

    rate: float
    cpu: float
    memory: float = 0.0


def watch(running: Running, count: int, *, warm_up: int) -> Pace:
    """The pace over about `count` messages, from when each worker has handled `warm_up`.

    Starting, warming up, and the end of the backlog are left out: only while all of them work is time counted.
    """
    workers = len(running.processes)
    first: dict[int, Report] = {}
    last: dict[int, Report] = {}
    before = used = memory = 0.0
    try:
        while _handled(first, last) < count:
            for report in running.next():
                if report.get("handled", 0) < warm_up:
                    continue
                (last if len(first) == workers else first)[report["pid"]] = report
            if last:
                used, memory = running.costs()
            else:
                before, memory = running.costs()
    except Ended:  # the bare loop ends with its backlog
        if _handled(first, last) < count / 2:
            raise
    handled = _handled(first, last)
    rate = sum(
        (report["handled"] - first[pid]["handled"]) / (report["at"] - first[pid]["at"]) for pid, report in last.items()
    )
    return Pace(rate, (used - before) / handled * 1e6, memory)


def _handled(first: dict[int, Report], last: dict[int, Report]) -> int:
    return sum(report["handled"] - first[pid]["handled"] for pid, report in last.items())
