"""Time limits of handlers, on the Clock, all served by one timer."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Awaitable
from typing import TypeVar

from carteiro.errors import HandlerTimeout
from carteiro.ports.clock import Clock

T = TypeVar("T")


class Deadline:
    """A limit on what the current task does next. `expired` tells whether it was the deadline that cancelled it."""

    __slots__ = ("expired", "task")

    def __init__(self, task: asyncio.Task[object]) -> None:
        self.task: asyncio.Task[object] | None = task
        self.expired = False

    def end(self) -> None:
        """What was limited is over; if the deadline cancelled it, the task is no longer being cancelled."""
        if self.expired and self.task is not None:
            self.task.uncancel()
        self.task = None


class Deadlines:
    """Cancels tasks at their deadline."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, Deadline]] = []
        self._numbers = itertools.count()
        self._timer: asyncio.Task[None] | None = None
        self._timer_at = 0.0

    async def limit(self, call: Awaitable[T], seconds: float) -> T:
        """Await `call` for at most `seconds`; raises HandlerTimeout."""
        deadline = self._start(seconds)
        try:
            return await call
        except asyncio.CancelledError:
            if deadline.expired:
                raise HandlerTimeout(f"ran longer than its timeout of {seconds:g} s") from None
            raise
        finally:
            deadline.end()

    def _start(self, seconds: float) -> Deadline:
        """Cancel the current task after `seconds`, unless `end()` is called first."""
        task = asyncio.current_task()
        assert task is not None
        deadline = Deadline(task)
        due = self._clock.monotonic() + seconds
        heapq.heappush(self._heap, (due, next(self._numbers), deadline))
        if self._timer is None or due < self._timer_at:
            self.close()
            self._timer = asyncio.get_running_loop().create_task(self._watch())
            self._timer_at = due
        return deadline

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _watch(self) -> None:
        while self._heap:
            due, _, deadline = self._heap[0]
            if deadline.task is None:
                heapq.heappop(self._heap)
                continue
            self._timer_at = due
            wait = due - self._clock.monotonic()
            if wait > 0:
                await self._clock.sleep(wait)
                continue
            heapq.heappop(self._heap)
            deadline.expired = True
            deadline.task.cancel()
        self._timer = None
