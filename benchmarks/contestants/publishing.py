"""How publishers are measured, whoever's they are: `python -m benchmarks.contestants.<name>_publisher MODE COUNT`.

one          awaited one by one
concurrent   by 200 tasks, each awaiting its own
many         all with one call
blocking     one by one, on the loop, which stands still meanwhile
paced        the time of sending, 200 times a second
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from benchmarks.contestants.orders import tell

CONCURRENT = 200
RATE = 200
"""Messages a second of mode `paced`."""


@dataclass(frozen=True, slots=True)
class Publisher:
    """`one` publishes an order and returns when it is safe; `many` so many of them; `stamp` the time it was sent.

    `blocking` is `one` on the loop, where a publisher can do so.
    """

    one: Callable[[], Awaitable[object]]
    many: Callable[[int], Awaitable[object]]
    stamp: Callable[[float], Awaitable[object]] | None = None
    blocking: Callable[[], object] | None = None


async def run(publisher: Publisher) -> None:
    mode, count = sys.argv[1], int(sys.argv[2])
    if mode == "paced":
        return await _paced(publisher, count)
    await publisher.one()
    at, cpu = time.perf_counter(), time.process_time()
    await _MODES[mode](publisher, count)
    tell(published=count, seconds=time.perf_counter() - at, cpu=time.process_time() - cpu)


async def _one_by_one(publisher: Publisher, count: int) -> None:
    for _ in range(count):
        await publisher.one()


async def _many(publisher: Publisher, count: int) -> None:
    await publisher.many(count)


async def _concurrent(publisher: Publisher, count: int) -> None:
    await asyncio.gather(*(_one_by_one(publisher, count // CONCURRENT) for _ in range(CONCURRENT)))


async def _blocking(publisher: Publisher, count: int) -> None:
    assert publisher.blocking is not None
    for _ in range(count):
        publisher.blocking()


_MODES = {"one": _one_by_one, "concurrent": _concurrent, "many": _many, "blocking": _blocking}


async def _paced(publisher: Publisher, count: int) -> None:
    """At a fixed rate, whatever a publish takes: one that is late does not make the next one late."""
    assert publisher.stamp is not None
    start = time.monotonic()
    for number in range(count):
        await asyncio.sleep(start + number / RATE - time.monotonic())
        await publisher.stamp(time.monotonic())
