"""What the tests of tasks use: types that travel, functions that a process can import, tasks that wait to be let go."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from carteiro import Carteiro, Retry, Router, constant, set_progress
from carteiro.ports.store import Entry
from carteiro.tasks.records import Record, Status, record_of, task_key
from carteiro.tasks.result import TaskResult
from tests.e2e.tour.stage import PATIENCE, soon

AT_ONCE = constant(0)
TWICE = Retry(attempts=2, backoff=AT_ONCE)
THRICE = Retry(attempts=3, backoff=AT_ONCE)
ONCE = Retry(attempts=1)


class Order(BaseModel):
    id: int
    sku: str = "tea"


@dataclass
class Point:
    x: int
    y: int


class PaymentDown(Exception):
    """One of a user's own, with more to it than its text."""

    def __init__(self, bank: str, code: int) -> None:
        super().__init__(f"{bank} does not answer")
        self.bank = bank
        self.code = code


class Gate:
    """Within a task: `async with gate` or `await gate.through()` says that it runs, and waits until it is let go."""

    def __init__(self) -> None:
        self.began: asyncio.Queue[Any] = asyncio.Queue()
        self.cancelled: asyncio.Queue[Any] = asyncio.Queue()
        self._open = asyncio.Event()

    async def through(self, what: Any = None) -> None:
        self.began.put_nowait(what)
        try:
            await self._open.wait()
        except asyncio.CancelledError:
            self.cancelled.put_nowait(what)
            raise

    def open(self) -> None:
        self._open.set()


async def got(result: TaskResult[Any]) -> Any:
    return await result.get(timeout=PATIENCE)


def unchecked(task: Any) -> Any:
    """The task, for calls that a type checker would refuse: wrong ones, and those that leave out what is injected."""
    return task


async def once(look: Callable[[], Awaitable[bool]]) -> None:
    """Until this is so, of which nobody tells."""

    async def again() -> None:
        while True:
            if await look():
                return
            await asyncio.sleep(0)

    await soon(again())


async def told(app: Carteiro, key: str, holds: Callable[[Entry | None], bool]) -> None:
    """Until this holds of what the store keeps at `key`."""
    store, version = app.connection.store, 0
    assert store is not None
    entry = (await store.get((key,))).get(key)
    while not holds(entry):
        version = 0 if entry is None else entry.version
        entry = (await soon(store.changed({key: version})))[key]


async def comes_to(app: Carteiro, result: TaskResult[Any], status: Status) -> Record:
    """Its record, once it has this status there."""
    found: list[Record] = []

    def holds(entry: Entry | None) -> bool:
        record = record_of(entry)
        if record is None or record.status != status:
            return False
        found.append(record)
        return True

    await told(app, task_key(result.key), holds)
    return found[-1]


# -- for processes ---------------------------------------------------------------------------------------------------

far = Router()


@far.task(runs_in="process")
def pid() -> int:
    return os.getpid()


@far.task(runs_in="process", retry=ONCE)
def spin(fifo: str) -> None:
    """Say which process runs this, and never end."""
    Path(fifo).write_text(str(os.getpid()))
    while True:
        pass


@far.task(runs_in="process", retry=TWICE)
def dies(path: str) -> str:
    """The first time only."""
    if not Path(path).exists():
        Path(path).write_text("I was here")
        os._exit(7)
    return "lived"


@far.task(runs_in="process", retry=ONCE)
def refuses(amount: int) -> None:
    raise ValueError(f"no {amount}")


@far.task(runs_in="process", retry=ONCE)
def tells() -> None:
    set_progress(1)


def with_far(app: Carteiro) -> None:
    """Have the app include these tasks; another one may have done so in an earlier test."""
    for task in far._tasks:
        task._desk = None
    app.include(far)
