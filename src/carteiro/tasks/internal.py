"""Tasks that every app has: they carry nobody's work, and no queue is without them."""

from __future__ import annotations

from typing import Any

from carteiro.errors import NoHandler
from carteiro.message import Message
from carteiro.tasks.following import GATHER_TASK
from carteiro.tasks.task import Task, TaskOptions


async def _gather(taken: Any) -> Any:
    """Keep the list of a group's results, which several tasks take, or which is a result in its own right."""
    return taken


async def _unknown(message: Message) -> None:
    """End a task that the app does not have: dead at once, and known to be so by whoever waits for it."""
    raise NoHandler(
        f"the app has no task `{message.type}`: start workers with the code that sends it, or send it from this code"
    )


GATHER: Task[..., Any, Any] = Task(_gather, GATHER_TASK, TaskOptions())
UNKNOWN: Task[..., Any, Any] = Task(_unknown, "", TaskOptions())
