"""What the store knows of tasks, read for some hundred of them at once.

A read as each begins is a call for as many as may run at once, and a wait for each of them. So what a task has to know
is read for those that come after it too, and for the next before these have run: tasks that wait for nothing run one
after the other. As many are read ahead as have just run so.

What was read ahead is older than what a task would read for itself, so it is not believed for long: not once a task
waits, nor once somebody has told that something is over, nor after a quarter of a second. Within these bounds a cancel
may find that the body ran. Its result is refused all the same, for it is written over the version that was read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from itertools import islice
from typing import Final

import msgspec

from carteiro.message import Delivery
from carteiro.ports.store import Entry
from carteiro.tasks.bench import Bench
from carteiro.tasks.knowing import keys_of

FARTHEST: Final = 500
"""So many are read ahead at most: they take some 20 ms."""
FRESH: Final = 0.25
"""Seconds for which a read is believed."""


class Read(msgspec.Struct, frozen=True, eq=False):
    """What was asked for many, what the bench had `heard` before, and until when it is believed (monotonic)."""

    found: asyncio.Future[Mapping[str, Entry]]
    heard: int
    until: float


class Ahead:
    """For the deliveries of one subscription. `waiting` has those that are to begin, the next one first."""

    def __init__(self, bench: Bench, waiting: Callable[[], Collection[Delivery]]) -> None:
        self.streak = 0
        """How many have ended, one after the other, without one that waited."""
        self._bench = bench
        self._waiting = waiting
        self._reads: dict[Delivery, Read] = {}
        self._stirred = bench.stirred

    async def read(self, delivery: Delivery) -> tuple[Mapping[str, Entry], int]:
        """What there is under its keys, perhaps among others; and what the bench had heard before."""
        if self._stirred != self._bench.stirred:
            self._stirred, self.streak = self._bench.stirred, 0
            self._reads.clear()
        read = self._reads.pop(delivery, None)
        if read is not None and read.until < self._bench.clock.monotonic():
            self._reads.clear()  # those behind it are as old
            read = None
        if read is None:
            read = self._look_up(delivery)
        elif 2 * len(self._reads) < min(self.streak, FARTHEST) and len(self._waiting()) > len(self._reads):
            self._look_up()
        if not read.found.done():
            await asyncio.shield(read.found)  # of many: whoever is cancelled must not cancel it
        return read.found.result(), read.heard

    def _look_up(self, *first: Delivery) -> Read:
        """For this one, and for those that come next."""
        bench, known = self._bench, self._reads
        coming = list(islice(self._waiting(), min(self.streak, FARTHEST)))
        if coming:
            bench.watch()
        new = [*first, *(delivery for delivery in coming if delivery not in known)]
        found = bench.ask([key for delivery in new for key in keys_of(delivery.message)])
        found.add_done_callback(self._answered)
        read = Read(found, bench.heard, bench.clock.monotonic() + FRESH)
        self._reads = {delivery: known.get(delivery, read) for delivery in coming}
        return read

    def _answered(self, found: asyncio.Future[Mapping[str, Entry]]) -> None:
        """An error is for those that wait for it: who comes later asks again."""
        if not found.cancelled() and found.exception() is not None:
            self._reads.clear()
