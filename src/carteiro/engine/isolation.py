"""Running a handler in a context of its own, without a task of its own.

A task a message costs more than all else that the engine does for it. Handlers therefore run inside the long-lived task
of their slot; what a task would have given them besides, a fresh set of context variables, they get here: each step of
the coroutine runs in one copy of the slot's context, so that nothing a handler sets reaches the next message.
"""

from __future__ import annotations

import contextvars
import types
from collections.abc import Callable, Coroutine, Generator
from time import perf_counter
from typing import Any, Final, TypeVar

T = TypeVar("T")

BLOCKING: Final = 0.1
"""Seconds that one step of a handler may hold the event loop before `blocked` is told."""


@types.coroutine
def isolated(coroutine: Coroutine[Any, Any, T], blocked: Callable[[float], None]) -> Generator[Any, Any, T]:
    """Await `coroutine` in a copy of the current context; call `blocked(seconds)` for each step that holds the loop."""
    run = contextvars.copy_context().run
    step: Callable[[Any], Any] = coroutine.send
    value: Any = None
    while True:
        started = perf_counter()
        try:
            future = run(step, value)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            held = perf_counter() - started
            if held > BLOCKING:
                blocked(held)
        try:
            value = yield future
            step = coroutine.send
        except BaseException as error:  # thrown into the task: the handler decides what becomes of it
            value, step = error, coroutine.throw
