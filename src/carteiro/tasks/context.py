"""The task that runs here, for what is called from within one."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from carteiro.errors import ConfigurationError

if TYPE_CHECKING:
    from carteiro.message import Delivery
    from carteiro.policies.retry import Retry
    from carteiro.tasks.bench import Bench
    from carteiro.tasks.records import Record


class Context:
    """One attempt of one task, as it sees itself."""

    __slots__ = ("bench", "delivery", "heard", "id", "names", "record", "retry", "task")

    def __init__(
        self,
        id: str,
        task: str,
        delivery: Delivery,
        record: Record | None,
        retry: Retry,
        bench: Bench | None,
    ) -> None:
        self.id = id
        self.task = task
        self.delivery = delivery
        self.record = record
        self.retry = retry
        self.bench = bench
        self.names: dict[str, int] = {}
        """How often each name of a step was used so far."""
        self.heard: list[str] = []
        """The ids of the events that it has waited for."""


running: ContextVar[Context | None] = ContextVar("carteiro_task", default=None)


def current_task(what: str) -> Context:
    """Raises ConfigurationError where no task runs; `what` is what was called."""
    context = running.get()
    if context is None:
        raise ConfigurationError(f"{what} is for use within a task, while it runs on a worker's loop or in its threads")
    return context


def current_bench(what: str) -> tuple[Context, Bench]:
    """Raises ConfigurationError where no task runs, or one that keeps nothing."""
    context = current_task(what)
    if context.bench is None:
        raise ConfigurationError(f"{what} needs a task that keeps something: `{context.task}` has result=False")
    return context, context.bench
