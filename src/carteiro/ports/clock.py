"""Time, as the engine and the embedded backends see it. No module reads the time or sleeps by any other way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Final, Protocol, TypeVar

T = TypeVar("T")


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


async def within(call: Awaitable[T], clock: Clock, timeout: float | None) -> T | None:
    """The result of `call`, or None if it takes longer than `timeout` seconds: then it is cancelled."""
    if timeout is None:
        return await call
    asked = asyncio.ensure_future(call)
    timer = asyncio.ensure_future(clock.sleep(max(0.0, timeout)))
    try:
        await asyncio.wait((asked, timer), return_when=asyncio.FIRST_COMPLETED)
        return asked.result() if asked.done() else None
    finally:
        timer.cancel()
        asked.cancel()
