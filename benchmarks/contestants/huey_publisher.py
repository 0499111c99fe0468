"""Publishing with Huey, which blocks its caller. It has no bulk call: many are one after another."""

from __future__ import annotations

import asyncio

from benchmarks.contestants.huey_app import tasks
from benchmarks.contestants.orders import BODY
from benchmarks.contestants.publishing import Publisher, run


async def one() -> None:
    tasks.handle(BODY)


async def many(count: int) -> None:
    for _ in range(count):
        tasks.handle(BODY)


async def stamp(sent: float) -> None:
    tasks.stamp(sent)


if __name__ == "__main__":
    asyncio.run(run(Publisher(one, many, stamp)))
