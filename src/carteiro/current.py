"""Which delivery is being handled here: for the correlation id of what a handler publishes, and for those who watch.

Each slot sets it before it calls; a handler runs in a copy of the slot's context, so the tasks and threads that it
starts keep the delivery that started them. Of a batch it is the first.
"""

from __future__ import annotations

from contextvars import ContextVar

from carteiro.message import Delivery

current: ContextVar[Delivery | None] = ContextVar("carteiro_current", default=None)
