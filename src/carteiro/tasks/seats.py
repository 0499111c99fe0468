"""Room for so many tasks of one queue at once, whatever their priority; the highest goes first."""

from __future__ import annotations

import asyncio
from collections import deque


class Seats:
    """The seats of one queue in one worker. Each of its levels fetches by itself; what is fetched takes a seat to run.

    Levels are counted from the highest, 0.
    """

    def __init__(self, count: int, levels: int) -> None:
        self._free = count
        self._waiting: tuple[deque[asyncio.Future[None]], ...] = tuple(deque() for _ in range(levels))

    def take_free(self) -> bool:
        """True, and it is taken, where one is free."""
        if self._free:
            self._free -= 1
            return True
        return False

    async def take(self, level: int) -> None:
        """Wait for one; of those who wait the highest level goes first, within it the first."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[level].append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.give_back()
            raise

    def give_back(self) -> None:
        for waiting in self._waiting:
            while waiting:
                waiter = waiting.popleft()
                if not waiter.done():
                    waiter.set_result(None)
                    return
        self._free += 1
