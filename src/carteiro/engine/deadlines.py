"""Time limits of handlers, on the Clock, all served by one timer.

Deadlines of one length end in the order in which they were begun, so each length has a queue and nothing is sorted; one
that is met leaves its queue at once, so that what is kept is what runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from carteiro.errors import HandlerTimeout
from carteiro.ports.clock import Clock

T = TypeVar("T")


class _Deadline:
    """What `task` does now ends at `due` (monotonic), or the task is cancelled and `expired` says why."""

    __slots__ = ("due", "expired", "task")

    def __init__(self, task: asyncio.Task[object], due: float) -> None:
        self.task = task
        self.due = due
        self.expired = False


class Deadlines:
    """Cancels what runs too long."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._by_length: dict[float, dict[_Deadline, None]] = {}
        self._timer: asyncio.Task[None] | None = None
        self._timer_due = 0.0

    async def limit(self, call: Awaitable[T], seconds: float) -> T:
        """Await `call` for at most `seconds`; raises HandlerTimeout."""
        task = asyncio.current_task()
        assert task is not None
        deadline = _Deadline(task, self._clock.monotonic() + seconds)
        running = self._by_length.setdefault(seconds, {})
        running[deadline] = None
        self._watch_until(deadline.due)
        try:
            return await call
        except asyncio.CancelledError:
            if deadline.expired:
                raise HandlerTimeout(f"ran longer than its timeout of {seconds:g} s") from None
            raise
        finally:
            running.pop(deadline, None)
            if deadline.expired:
                task.uncancel()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch_until(self, due: float) -> None:
        if self._timer is None or due < self._timer_due:
            self.close()
            self._timer_due = due
            self._timer = asyncio.get_running_loop().create_task(self._watch(), name="carteiro deadlines")

    async def _watch(self) -> None:
        while (earliest := self._earliest()) is not None:
            self._timer_due = earliest.due
            wait = earliest.due - self._clock.monotonic()
            if wait > 0:
                await self._clock.sleep(wait)
                continue
            earliest.expired = True
            for running in self._by_length.values():
                running.pop(earliest, None)
            earliest.task.cancel()
        self._timer = None

    def _earliest(self) -> _Deadline | None:
        heads = [next(iter(running)) for running in self._by_length.values() if running]
        return min(heads, key=lambda deadline: deadline.due, default=None)
