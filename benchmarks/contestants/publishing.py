"""Any contestant's publisher as a process: `python -m benchmarks.contestants.publishing CONTESTANT MODE COUNT`.

one          awaited one by one
concurrent   by 200 tasks, each awaiting its own
many         in bulk, 5,000 with one call
blocking     one by one, on the loop, which stands still meanwhile
paced        the time of sending, 200 times a second until it is stopped

CONTESTANT is a module beside this one. Its `publishing()` is a context that gives its Publisher.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import ParamSpec

import uvloop

from benchmarks.contestants.orders import tell

CONCURRENT = 200
BULK = 5_000
RATE = 200
"""Messages a second of mode `paced`."""

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Publisher:
    """`one` publishes an order and returns when it is safe; `many` so many of them; `stamp` the time it was sent.

    `alone` is `one` on the loop, where a publisher can do so. What sends tasks has more to do, each with its results:
    `trip` sends one, `chains` so many of so many steps, `chords` so many of so many members.
    """

    one: Callable[[], Awaitable[object]]
    many: Callable[[int], Awaitable[object]]
    stamp: Callable[[float], Awaitable[object]] | None = None
    alone: Callable[[], object] | None = None
    trip: Callable[[], Awaitable[object]] | None = None
    chains: Callable[[int, int], Awaitable[object]] | None = None
    chords: Callable[[int, int], Awaitable[object]] | None = None


def blocking(
    one: Callable[[], object],
    stamp: Callable[[float], object] | None = None,
    many: Callable[[int], object] | None = None,
    *,
    trip: Callable[[], object] | None = None,
    chains: Callable[[int, int], object] | None = None,
    chords: Callable[[int, int], object] | None = None,
) -> Publisher:
    """Of a library that blocks its caller; without `many` it has no bulk call, and many are one after another."""

    def one_after_another(count: int) -> None:
        for _ in range(count):
            one()

    return Publisher(
        _awaitable(one),
        _awaitable(many or one_after_another),
        stamp and _awaitable(stamp),
        trip=trip and _awaitable(trip),
        chains=chains and _awaitable(chains),
        chords=chords and _awaitable(chords),
    )


def at_once(one: Callable[[], Awaitable[object]], limit: int) -> Callable[[int], Awaitable[object]]:
    """What publishes many where there is no bulk call, so many at a time."""

    async def many(count: int) -> None:
        for start in range(0, count, limit):
            await asyncio.gather(*(one() for _ in range(min(limit, count - start))))

    return many


def _awaitable(call: Callable[P, object]) -> Callable[P, Awaitable[object]]:
    async def awaited(*args: P.args, **kwargs: P.kwargs) -> object:
        return call(*args, **kwargs)

    return awaited


async def run(contestant: str, mode: str, count: int) -> None:
    publishing: Callable[[], AbstractAsyncContextManager[Publisher]]
    publishing = importlib.import_module(f"benchmarks.contestants.{contestant}").publishing
    async with publishing() as publisher:
        if mode == "paced":
            return await _paced(publisher)
        await publisher.one()
        at, cpu = time.perf_counter(), time.process_time()
        await _MODES[mode](publisher, count)
        tell(published=count, seconds=time.perf_counter() - at, cpu=time.process_time() - cpu)


async def _one_by_one(publisher: Publisher, count: int) -> None:
    for _ in range(count):
        await publisher.one()


async def _concurrent(publisher: Publisher, count: int) -> None:
    await asyncio.gather(*(_one_by_one(publisher, count // CONCURRENT) for _ in range(CONCURRENT)))


async def _many(publisher: Publisher, count: int) -> None:
    for start in range(0, count, BULK):
        await publisher.many(min(BULK, count - start))


async def _blocking(publisher: Publisher, count: int) -> None:
    assert publisher.alone is not None
    for _ in range(count):
        publisher.alone()


_MODES = {"one": _one_by_one, "concurrent": _concurrent, "many": _many, "blocking": _blocking}


async def _paced(publisher: Publisher) -> None:
    """At a fixed rate, whatever a publish takes: one that is late does not make the next one late."""
    assert publisher.stamp is not None
    start = time.monotonic()
    for number in itertools.count():
        await asyncio.sleep(start + number / RATE - time.monotonic())
        await publisher.stamp(time.monotonic())


if __name__ == "__main__":
    uvloop.run(run(sys.argv[1], sys.argv[2], int(sys.argv[3])))
