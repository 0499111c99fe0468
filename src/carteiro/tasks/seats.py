"""Room for so many tasks of one queue at once, whatever their priority; the highest goes first."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from carteiro.ports.clock import Clock

PATIENCE: Final = 1.0
"""Seconds that a task waits here before others may have it, who are perhaps idle; or for as long as all seats have been
taken by the same tasks, if that is longer: so what nobody else wants does not come and go without end."""


class Seats:
    """The seats of one queue in one worker. Each of its levels fetches by itself; what is fetched takes a seat to run.

    Levels are counted from the highest, 0.
    """

    def __init__(self, count: int, levels: int, clock: Clock) -> None:
        self._free = count
        self._clock = clock
        self._moved_at = clock.monotonic()
        """When a task last took a seat."""
        self._waiting: tuple[deque[asyncio.Future[None]], ...] = tuple(deque() for _ in range(levels))

    def take_free(self) -> bool:
        """True, and it is taken, where one is free."""
        if not self._free:
            return False
        self._free -= 1
        if not self._free:
            self._moved_at = self._clock.monotonic()
        return True

    async def take(self, level: int) -> bool:
        """Wait for one; of those who wait the highest level goes first, within it the first. False if none came."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[level].append(waiter)
        patience = max(PATIENCE, self._clock.monotonic() - self._moved_at)
        timer = asyncio.ensure_future(self._clock.sleep(patience))
        try:
            await asyncio.wait((waiter, timer), return_when=asyncio.FIRST_COMPLETED)
            return waiter.done()
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.give_back()
            raise
        finally:
            timer.cancel()
            waiter.cancel()

    def give_back(self) -> None:
        for waiting in self._waiting:
            while waiting:
                waiter = waiting.popleft()
                if not waiter.done():
                    self._moved_at = self._clock.monotonic()
                    waiter.set_result(None)
                    return
        self._free += 1
