"""Which message is being handled here: what a publish inside a handler takes its correlation id from.

The context variable is set once for each slot, not for each message; tasks and threads that a handler starts inherit
it.
"""

from __future__ import annotations

from contextvars import ContextVar

from carteiro.message import Message


class Current:
    """The message in one slot."""

    __slots__ = ("message",)

    def __init__(self) -> None:
        self.message: Message | None = None


current: ContextVar[Current] = ContextVar("carteiro_current")


def current_correlation_id() -> str | None:
    here = current.get(None)
    return None if here is None or here.message is None else here.message.correlation_id
