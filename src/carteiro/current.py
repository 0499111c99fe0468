"""Which delivery is being handled here: for the correlation id of what a handler publishes, and for those who watch.

The context variable is set once for each slot, not for each message; tasks and threads that a handler starts inherit
it.
"""

from __future__ import annotations

from contextvars import ContextVar

from carteiro.message import Delivery


class Current:
    """The delivery in one slot; of a batch, the first."""

    __slots__ = ("delivery",)

    def __init__(self) -> None:
        self.delivery: Delivery | None = None


current: ContextVar[Current] = ContextVar("carteiro_current")


def current_delivery() -> Delivery | None:
    here = current.get(None)
    return None if here is None else here.delivery
