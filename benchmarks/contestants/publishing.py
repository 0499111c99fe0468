"""How publishers are measured, whoever's they are: `python -m benchmarks.contestants.<name>_publisher MODE COUNT`."""

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
    """`one` publishes an order and returns when it is safe; `many` so many of them; `stamp` the time it was sent."""

    one: Callable[[], Awaitable[object]]
    many: Callable[[int], Awaitable[object]]
    stamp: Callable[[float], Awaitable[object]]


async def run(publisher: Publisher) -> None:
    mode, count = sys.argv[1], int(sys.argv[2])
    if mode == "paced":
        return await _paced(publisher, count)
    await publisher.one()
    at, cpu = time.perf_counter(), time.process_time()
    await {"one": _one_by_one, "many": _many, "concurrent": _concurrent}[mode](publisher, count)
    tell(published=count, seconds=time.perf_counter() - at, cpu=time.process_time() - cpu)


async def _one_by_one(publisher: Publisher, count: int) -> None:
    for _ in range(count):
        await publisher.one()


async def _many(publisher: Publisher, count: int) -> None:
    await publisher.many(count)


async def _concurrent(publisher: Publisher, count: int) -> None:
    await asyncio.gather(*(_one_by_one(publisher, count // CONCURRENT) for _ in range(CONCURRENT)))


async def _paced(publisher: Publisher, count: int) -> None:
    """At a fixed rate, whatever a publish takes: one that is late does not make the next one late."""
    start = time.monotonic()
    for number in range(count):
        await asyncio.sleep(start + number / RATE - time.monotonic())
        await publisher.stamp(time.monotonic())
