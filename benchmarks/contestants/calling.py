"""Any contestant's caller, who waits for results.

It is a process: `python -m benchmarks.contestants.calling CONTESTANT MODE COUNT SIZE`.

trips     one task after another: each is sent, and its result awaited, before the next
chains    so many of SIZE steps, all started before any result is waited for
chords    so many of SIZE members and a callback, likewise

It begins to measure when a worker is there and has done one of the same. CONTESTANT is a module beside this one, whose
`publishing()` is a context that gives its Publisher.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import uvloop

from benchmarks.contestants.orders import tell
from benchmarks.contestants.publishing import Publisher

WARM = 20
"""Round trips before any is measured."""


async def run(contestant: str, mode: str, count: int, size: int) -> None:
    publishing: Callable[[], AbstractAsyncContextManager[Publisher]]
    publishing = importlib.import_module(f"benchmarks.contestants.{contestant}").publishing
    async with publishing() as publisher:
        assert publisher.trip is not None
        for _ in range(WARM):
            await publisher.trip()
        if mode == "trips":
            return await _trips(publisher, count)
        call = {"chains": publisher.chains, "chords": publisher.chords}[mode]
        assert call is not None
        await call(1, min(size, WARM))
        at = time.perf_counter()
        await call(count, size)
        tell(called=count, seconds=time.perf_counter() - at)


async def _trips(publisher: Publisher, count: int) -> None:
    assert publisher.trip is not None
    for _ in range(count):
        at = time.perf_counter()
        await publisher.trip()
        tell(trip=round(time.perf_counter() - at, 6))


if __name__ == "__main__":
    uvloop.run(run(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
