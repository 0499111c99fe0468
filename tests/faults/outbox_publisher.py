"""A process that publishes numbers, one after the other, and tells of each that is safe: `url file first [crash]`.

With `crash` it dies when the broker has the first batch that it forwards, and before that is taken out of the outbox.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import Sequence

from carteiro import Carteiro
from carteiro.engine.outbox_file import OutboxFile


async def die(self: OutboxFile, ids: Sequence[int]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def main(url: str, file: str, first: int, *, crash: bool) -> None:
    if crash:
        OutboxFile.drop = die  # type: ignore[method-assign]
    async with Carteiro("shop", url, outbox=file) as app:
        for number in itertools.count(first):
            await app.publish("work", number)
            print(number, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), crash="crash" in sys.argv))
