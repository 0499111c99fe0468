"""Publishing by hand: one transaction a message, or one for 5,000. The loop is blocked meanwhile: nothing groups."""

from __future__ import annotations

import asyncio
import os

from benchmarks.contestants.bare_file import BareFile
from benchmarks.contestants.orders import FILE_VARIABLE
from benchmarks.contestants.publishing import Publisher, run

file = BareFile(os.environ[FILE_VARIABLE])


async def one() -> None:
    file.publish(1)


async def many(count: int) -> None:
    for start in range(0, count, 5000):
        file.publish(min(5000, count - start), start)


async def stamp(sent: float) -> None:
    raise NotImplementedError("the bare loop's latency is not measured")


if __name__ == "__main__":
    asyncio.run(run(Publisher(one, many, stamp)))
