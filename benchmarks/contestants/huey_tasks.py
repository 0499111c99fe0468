"""Huey on SQLite, with its documented defaults but one: `fsync=True`, which says what SQLite's own default is.

Its file is then as safe as ours: WAL and `synchronous=FULL`. A task is deleted before it runs, so a crash loses it:
leases and fences it does not have to write. The body travels as bytes and is validated by the task.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from huey import SqliteHuey

from benchmarks.contestants.orders import BODY, Delays, Order, Tally


class Tasks:
    """One file's queue and its two tasks."""

    def __init__(self, path: str, *, delays: int = 0, fsync: bool = True) -> None:
        self.queue = SqliteHuey(filename=path, fsync=fsync)
        tally, times = Tally(every=50), Delays(delays)

        def handle(body: bytes) -> None:
            Order.model_validate_json(body)
            tally.count()

        def stamp(sent: float) -> None:
            times.note(sent)

        self.handle: Callable[[bytes], Any] = self.queue.task(retries=4)(handle)
        self.stamp: Callable[[float], Any] = self.queue.task(retries=4)(stamp)


def fill(path: str, messages: int) -> None:
    """Leave so many orders waiting; what is not measured need not wait for the disk."""
    tasks = Tasks(path, fsync=False)
    for _ in range(messages):
        tasks.handle(BODY)
    tasks.queue.storage.close()
