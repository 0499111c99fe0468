"""A clock that stands still until it is told to move.

What drives it repeats two steps: let everything run until nothing is left to do now, then move to `next_due()`. So
a week of waits passes in milliseconds, and each sleeper wakes at exactly the time it asked for:

    while (due := clock.next_due()) is not None and due <= end:
        clock.advance_to(due)
        ...                                 # run the event loop until it is idle again
    clock.advance_to(end)
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import math
from datetime import UTC, datetime
from typing import Final

START: Final = datetime(2026, 1, 1, tzinfo=UTC)


class VirtualClock:
    """The Clock port in virtual time, from `start` (aware) on. For one event loop at a time."""

    def __init__(self, start: datetime = START) -> None:
        self._now = start.timestamp()
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def time(self) -> float:
        return self._now

    def monotonic(self) -> float:
        """The same as `time`: counted from `start`, 0.1 s would not be the same 0.1 s to a timeout and to `advance`."""
        return self._now

    async def sleep(self, seconds: float) -> None:
        """Return once the clock was moved `seconds` ahead; with none to wait, only let others run first."""
        if seconds <= 0:
            await asyncio.sleep(0)  # noqa: TID251 (a clock is what the others are to use)
            return
        # At least the least that a float can tell apart, 0.2 µs in our time: who sleeps again for the rest of a wait
        # would otherwise wake at once and for ever.
        due = max(self._now + seconds, math.nextafter(self._now, math.inf))
        sleeper = (due, next(self._order), asyncio.get_running_loop().create_future())
        bisect.insort(self._sleepers, sleeper)
        try:
            await sleeper[2]
        finally:
            # Woken, it is no longer in the list; cancelled, it must not be what `next_due` waits for.
            at = bisect.bisect_left(self._sleepers, sleeper)
            if at < len(self._sleepers) and self._sleepers[at] is sleeper:
                del self._sleepers[at]

    async def sleep_until(self, moment: float) -> None:
        await self.sleep(moment - self._now)

    def next_due(self) -> float | None:
        """When the earliest sleeper wakes, in seconds since the epoch; None where nobody sleeps."""
        return self._sleepers[0][0] if self._sleepers else None

    def advance_to(self, time: float) -> None:
        """Move to `time`, in seconds since the epoch, and wake all that is due by then, the earliest first.

        They run when the event loop does, and see `time` as now: to let each see its own time, go from one `next_due`
        to the next. Raises ValueError for a time that has passed.
        """
        if time < self._now:
            raise ValueError(f"time does not go back: it is {self._now}, asked for {time}")
        self._now = time
        while self._sleepers and self._sleepers[0][0] <= time:
            _, _, future = self._sleepers.pop(0)
            if not future.done():
                future.set_result(None)
