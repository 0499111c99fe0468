"""Time, as the engine and the embedded backends see it. No module reads the time or sleeps by any other way."""

from __future__ import annotations

import asyncio
import time
from typing import Final, Protocol


class Clock(Protocol):
    """Two readings and a wait. `time` is seconds since the epoch; `monotonic` never goes back."""

    def time(self) -> float: ...
    def monotonic(self) -> float: ...
    async def sleep(self, seconds: float) -> None: ...

    async def sleep_until(self, moment: float) -> None:
        """Return when `time` has come to `moment`, also where somebody sets it meanwhile."""
        ...


LOOK: Final = 30.0
"""Seconds after which a machine's clock is looked at again, for it may have been set."""


class SystemClock:
    """The machine's own clock."""

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def sleep_until(self, moment: float) -> None:
        while (left := moment - self.time()) > 0:
            await self.sleep(min(left, LOOK))


SYSTEM_CLOCK: Clock = SystemClock()
