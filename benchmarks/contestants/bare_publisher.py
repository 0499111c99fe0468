"""Publishing by hand: one transaction a message, or one for 5,000.

A loop that goes on while a commit waits for the disk needs a thread for the file, here as in carteiro. `blocking` does
without.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

import uvloop

from benchmarks.contestants.bare_file import BareFile
from benchmarks.contestants.orders import FILE_VARIABLE
from benchmarks.contestants.publishing import Publisher, run

file = BareFile(os.environ[FILE_VARIABLE])
thread = ThreadPoolExecutor(1)


async def one() -> None:
    await asyncio.get_running_loop().run_in_executor(thread, file.publish, 1)


async def many(count: int) -> None:
    for start in range(0, count, 5000):
        file.publish(min(5000, count - start), start)


if __name__ == "__main__":
    uvloop.run(run(Publisher(one, many, blocking=lambda: file.publish(1))))
