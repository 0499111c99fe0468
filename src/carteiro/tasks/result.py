"""The handle of a task that was sent, or of a run that was started: whoever has it, or its id, sees how it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from carteiro.durations import Duration
from carteiro.tasks.records import Progress, Status, node_id

if TYPE_CHECKING:
    from carteiro.tasks.desk import Desk

T = TypeVar("T")


class TaskResult(Generic[T]):
    """The handle of the task `id`. It holds nothing but names: `app.tasks.result(id)` makes another one anywhere.

    Each method has a twin that ends in `_sync`, for code that has no event loop. All of them raise NoResult for a task
    that is declared with `result=False`: nothing is known of it.
    """

    def __init__(self, id: str, desk: Desk, *, task: str = "", returns: Any = Any) -> None:
        self.id = id
        self.task = task
        """The name of its task; empty where only its id is known."""
        self._desk = desk
        self._returns = returns

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}" + (f" of {self.task}>" if self.task else ">")

    @property
    def key(self) -> str:
        """The id of the task whose result it is."""
        return self.id

    async def get(self, timeout: Duration | None = None) -> T:
        """What the task returned, once it has: it waits to be told, at most for `timeout`.

        Raises the task's own exception if it has failed for good, with the remote traceback as its cause, or TaskFailed
        where that exception is not known here; TaskCancelled, TaskExpired; ResultTimeout, a TimeoutError.
        """
        self._check()
        value: T = await self._desk.get(self, timeout)
        return value

    async def status(self) -> Status:
        """`pending` is also the status of what was never sent, or whose result has expired."""
        self._check()
        return await self._desk.status(self.key)

    async def cancel(self) -> bool:
        """Cancel it, for good: what has not begun will not, what runs is interrupted at its next `await` (in a process,
        at once; in a thread, it goes on and its result is dropped). Returns False if it was over already.
        """
        self._check()
        return await self._desk.cancel(self.key, task=self.task)

    async def progress(self) -> Progress | None:
        """What the task has last said by `set_progress`."""
        self._check()
        return await self._desk.progress(self.key)

    def get_sync(self, timeout: Duration | None = None) -> T:
        value: T = self._desk.sync(lambda desk: self._at(desk).get(timeout))
        return value

    def status_sync(self) -> Status:
        return self._desk.sync(lambda desk: self._at(desk).status())

    def cancel_sync(self) -> bool:
        return self._desk.sync(lambda desk: self._at(desk).cancel())

    def progress_sync(self) -> Progress | None:
        return self._desk.sync(lambda desk: self._at(desk).progress())

    @property
    def returns(self) -> Any:
        """The type of its result, as the task declares it; Any where nobody says."""
        return self._returns

    def _at(self, desk: Desk) -> Self:
        return type(self)(self.id, desk, task=self.task, returns=self._returns)

    def _check(self) -> None:
        if self.task:
            self._desk.check_kept(self.task)


class RunResult(TaskResult[T]):
    """The handle of a run: its result is that of its last task. Cancelling it cancels all that is left of it."""

    @property
    def key(self) -> str:
        return node_id(self.id, 0)
