"""Running a handler in a context of its own, without a task of its own.

A task a message costs more than all else that the engine does for it. Handlers therefore run inside the long-lived task
of their slot; what a task would have given them besides, a fresh set of context variables, they get here: each step of
the coroutine runs in one copy of the slot's context, so that nothing a handler sets reaches the next message.

A handler that never waits is done after its first step, which is a plain call. Only one that does is awaited.
"""

from __future__ import annotations

import asyncio
import contextvars
import types
from collections.abc import Callable, Coroutine, Generator
from time import perf_counter
from typing import Any, Final

BLOCKING: Final = 0.1
"""Seconds that one step of a handler may hold the event loop before `blocked` is told."""


class Pending:
    """A handler that waits for something: await `rest()` for its result."""

    __slots__ = ("_blocked", "_coroutine", "_future", "_run", "instead")

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Any],
        run: Callable[..., Any],
        future: Any,
        blocked: Callable[[float], None],
    ) -> None:
        self._coroutine = coroutine
        self._run = run
        self._future = future
        self._blocked = blocked
        self.instead: BaseException | None = None
        """What the handler gets in place of the next cancel."""

    @types.coroutine
    def rest(self) -> Generator[Any, Any, Any]:
        future = self._future
        while True:
            value: Any
            try:
                value = yield future
                step: Callable[[Any], Any] = self._coroutine.send
            except BaseException as error:  # thrown into the task: the handler decides what becomes of it
                value, step = error, self._coroutine.throw
                if self.instead is not None and isinstance(error, asyncio.CancelledError):
                    value, self.instead = self.instead, None
                    _forgive()
            started = perf_counter()
            try:
                future = self._run(step, value)
            except StopIteration as stop:
                return stop.value
            finally:
                held = perf_counter() - started
                if held > BLOCKING:
                    self._blocked(held)


def begin(coroutine: Coroutine[Any, Any, Any], blocked: Callable[[float], None]) -> Any:
    """Run the first step of `coroutine` in a copy of the current context.

    Returns its result, raises what it raises, or returns Pending where it waits. `blocked(seconds)` is called for each
    step that holds the loop too long.
    """
    run = contextvars.copy_context().run
    started = perf_counter()
    try:
        future = run(coroutine.send, None)
    except StopIteration as stop:
        held = perf_counter() - started
        if held > BLOCKING:
            blocked(held)
        return stop.value
    held = perf_counter() - started
    if held > BLOCKING:
        blocked(held)
    return Pending(coroutine, run, future, blocked)


def _forgive() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()
