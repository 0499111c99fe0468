"""What is asked of tasks from outside of a worker: how they stand, and what they returned once they are over."""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable
from typing import Any, Self, TypeVar

from carteiro.durations import Duration, seconds
from carteiro.engine.reconnect import reconnect_wait
from carteiro.errors import (
    BrokerUnavailable,
    ConfigurationError,
    InvalidBody,
    ResultTimeout,
    TaskCancelled,
    TaskExpired,
)
from carteiro.ports.clock import within
from carteiro.ports.store import Store
from carteiro.tasks.cancelling import cancel
from carteiro.tasks.flaws import restored, with_errors
from carteiro.tasks.office import Link, Office
from carteiro.tasks.records import (
    OVER,
    Progress,
    Record,
    Status,
    node_key,
    progress_key,
    progress_of,
    record_of,
    running_key,
    task_key,
)
from carteiro.tasks.result import TaskResult
from carteiro.tasks.values import read

T = TypeVar("T")


class Asking:
    """Who asks after tasks by their ids, on the app's connection or, without an event loop, on one opened for it."""

    def __init__(self, office: Office) -> None:
        self._office = office
        self._link: Link | None = None

    def sync(self, work: Callable[[Self], Awaitable[T]]) -> T:
        """Do this from code that has no event loop."""

        async def there(link: Link) -> T:
            here = copy.copy(self)
            here._link = link
            return await work(here)

        return self._office.call_sync(there)

    async def get(self, handle: TaskResult[T], timeout: Duration | None = None) -> T:
        """As `TaskResult.get`."""
        record = await self._wait(handle.key, None if timeout is None else seconds(timeout))
        if record.status == "cancelled":
            raise TaskCancelled(f"task `{record.task or handle.key}` was cancelled")
        if record.status == "expired":
            raise TaskExpired(f"task `{record.task}` had not begun when its `expires` was over")
        if record.flaw is not None:
            raise restored(record.flaw)
        try:
            value = read(record.result, handle.returns)
        except InvalidBody as error:
            raise InvalidBody(
                f"what task `{record.task}` returned is not what it says it returns, {_shown(handle.returns)}: {error}"
            ) from error
        found: T = with_errors(value) if handle.returns is Any else value
        return found

    async def status(self, id: str) -> Status:
        found = await self._store().get((task_key(id), running_key(id)))
        record = record_of(found.get(task_key(id)))
        if record is not None and record.is_over:
            return record.status
        if running_key(id) in found:
            return "running"
        return "pending" if record is None else record.status

    async def record(self, id: str) -> Record | None:
        """What is known of a task; None for one that nothing has happened to yet, or that is forgotten."""
        return record_of((await self._store().get((task_key(id),))).get(task_key(id)))

    async def progress(self, id: str) -> Progress | None:
        key = progress_key(id)
        entry = (await self._store().get((key,))).get(key)
        return None if entry is None else progress_of(entry)

    async def cancel(self, id: str, *, task: str = "") -> bool:
        """As `TaskResult.cancel`. Raises ConfigurationError for a part of a run."""
        store = self._store()
        run, _, node = id.rpartition(".")
        if run and node != "0" and node_key(id) in await store.get((node_key(id),)):
            raise ConfigurationError(
                f"`{id}` is a part of a run, which would wait for it: cancel the run, `app.tasks.run('{run}').cancel()`"
            )
        known = Record("cancelled", task, 0.0)
        return await cancel(store, self._office.clock, id, known, app=self._office.name)

    async def _wait(self, id: str, timeout: float | None) -> Record:
        """Its record once it is over. Raises ResultTimeout."""
        clock, key = self._office.clock, task_key(id)
        until = None if timeout is None else clock.monotonic() + timeout
        version = tries = 0
        while True:
            try:
                told = await within(
                    self._store().changed({key: version}), clock, None if until is None else until - clock.monotonic()
                )
            except BrokerUnavailable:
                if until is not None and clock.monotonic() >= until:
                    raise
                await clock.sleep(reconnect_wait(tries))
                tries += 1
                continue
            if told is None:
                raise ResultTimeout(
                    f"no result of `{id}` within {timeout:g} s: it has not ended yet, was never sent, or is forgotten"
                )
            entry = told.get(key)
            record = record_of(entry)
            if record is not None and record.status in OVER:
                return record
            version = 0 if entry is None else entry.version

    def _connected(self) -> Link:
        return self._office.link() if self._link is None else self._link

    def _store(self) -> Store:
        store = self._connected().store
        if store is None:
            raise ConfigurationError(
                f"app `{self._office.name}` keeps no state, so that there is nothing to ask: it declares no tasks"
            )
        return store


def _shown(annotation: Any) -> str:
    return f"`{annotation.__qualname__ if type(annotation) is type else annotation}`"
