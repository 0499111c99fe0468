"""Time limits of handlers, on the Clock, all served by one timer.

Deadlines of one length end in the order in which they were begun, so each length has a queue and nothing is sorted; one
that is met leaves its queue at once, so that what is kept is what runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from carteiro.errors import HandlerTimeout
from carteiro.ports.clock import Clock

T = TypeVar("T")


class Deadline:
    """What `task` does now ends at `due` (monotonic), or the task is cancelled, `on_due` being called before."""

    __slots__ = ("due", "expired", "on_due", "seconds", "task")

    def __init__(
        self, task: asyncio.Task[object], due: float, seconds: float, on_due: Callable[[], None] | None
    ) -> None:
        self.task = task
        self.due = due
        self.seconds = seconds
        self.on_due = on_due
        self.expired = False


class Deadlines:
    """Cancels what runs too long."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._by_length: dict[float, dict[Deadline, None]] = {}
        self._timer: asyncio.Task[None] | None = None
        self._timer_due = 0.0

    async def limit(self, call: Awaitable[T], seconds: float) -> T:
        """Await `call` for at most `seconds`; raises HandlerTimeout."""
        deadline = self.begin(seconds)
        try:
            return await call
        except asyncio.CancelledError:
            if deadline.expired:
                raise HandlerTimeout(f"ran longer than its timeout of {seconds:g} s") from None
            raise
        finally:
            self.end(deadline)
            if deadline.expired:
                deadline.task.uncancel()

    def begin(self, seconds: float, on_due: Callable[[], None] | None = None) -> Deadline:
        """Have the current task cancelled in so many seconds unless `end` comes first; `on_due` is called before."""
        task = asyncio.current_task()
        assert task is not None
        deadline = Deadline(task, self._clock.monotonic() + seconds, seconds, on_due)
        self._by_length.setdefault(seconds, {})[deadline] = None
        self._watch_until(deadline.due)
        return deadline

    def end(self, deadline: Deadline) -> None:
        self._by_length[deadline.seconds].pop(deadline, None)

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
            if earliest.on_due is not None:
                earliest.on_due()
            earliest.task.cancel()
        self._timer = None

    def _earliest(self) -> Deadline | None:
        heads = [next(iter(running)) for running in self._by_length.values() if running]
        return min(heads, key=lambda deadline: deadline.due, default=None)
