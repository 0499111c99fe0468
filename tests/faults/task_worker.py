"""A worker for tests to kill while it runs tasks: `tests.faults.worker` with the tasks of a shop.

    python -m tests.faults.task_worker URL OPTIONS

Each task notes in the ledger, a file, that it was called: that is what tells how often. `go` opens the gate that `held`
tasks wait at.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec

from carteiro import Carteiro, Limit, Message, Retry, constant, step, wait_for
from carteiro.errors import BrokerUnavailable
from carteiro.message import Join, Outcome, Write
from carteiro.ports.broker import Backend
from carteiro.ports.store import Entry
from carteiro.tasks.records import record_of
from tests.faults.worker import Failed, Layer, Options, Step, WorkerApp, die, main

TaskStep = Literal["between", "ended", "written", "joined"]
"""Where a worker can die besides: between two steps of a task; and where the store is not the broker's own, when the
task's record is next, when it is in the store, when its joins are."""

ATTEMPTS = 20


class TaskOptions(Options, kw_only=True, omit_defaults=True):
    module: ClassVar[str] = "tests.faults.task_worker"

    ledger: str = ""
    store: str | None = None
    """Its URL, where the broker has none."""
    at: Step | TaskStep | None = None
    """Where it dies."""
    of: str = ""
    """The task at which it dies."""
    unanswered: bool = False
    """The first record of that task that it writes is written, and the worker is told that the store is away."""
    open: bool = False
    """Whether the gate is open from the start."""
    send: bool = False
    """Send one task `once`, in place of running any."""


def ledger_line(name: str, message: Message) -> str:
    return f"{name} {message.id} {message.attempt}\n"


def shop(broker: str | Backend, options: TaskOptions, worker: TaskWorkerApp | None = None, **more: Any) -> Carteiro:
    """The app, as a worker runs it or as a test sends its tasks."""
    app = Carteiro(
        "shop", broker, store=options.store, lease=options.lease, grace=options.grace,
        retry=Retry(attempts=ATTEMPTS, backoff=constant(0), not_on=(Failed,)), **more,
    )  # fmt: skip

    def begun(name: str, message: Message) -> TaskWorkerApp:
        assert worker is not None, f"{name} was called in the test"
        with Path(options.ledger).open("a") as ledger:
            ledger.write(ledger_line(name, message))
        if options.of == name:
            worker.crash_at("decoded")
        if not options.quiet:
            worker.tell("running", task=name, id=message.id, attempt=message.attempt)
        return worker

    @app.task
    async def add(a: int, b: int, message: Message) -> int:
        begun("add", message)
        return a + b

    @app.task
    async def double(a: int, message: Message) -> int:
        begun("double", message)
        return 2 * a

    @app.task
    async def total(values: list[Any], message: Message) -> list[Any]:
        begun("total", message)
        return values

    @app.task
    async def count(values: list[Any], message: Message) -> int:
        begun("count", message)
        return len(values)

    @app.task
    async def nap(seconds: float, value: int, message: Message) -> int:
        begun("nap", message)
        await asyncio.sleep(seconds)
        return value

    @app.task
    async def broken(number: int, message: Message) -> None:
        begun("broken", message)
        raise Failed(str(number))

    @app.task
    async def mourn(failure: dict[str, Any], message: Message) -> str:
        begun("mourn", message)
        return str(failure["error"])

    async def hold(name: str, number: int, message: Message) -> list[int]:
        """What another process, or attempt, would not return."""
        here = begun(name, message)
        try:
            await here.go.wait()
        except asyncio.CancelledError:
            here.tell("cancelled", id=message.id)
            raise
        return [number, os.getpid()]

    @app.task
    async def held(number: int, message: Message) -> list[int]:
        return await hold("held", number, message)

    @app.task(limit=Limit(1))
    async def limited(number: int, message: Message) -> list[int]:
        return await hold("limited", number, message)

    @app.task(unique=True)
    async def once(number: int, message: Message) -> int:
        begun("once", message)
        return number

    @app.task
    async def blocks_the_loop(seconds: float, message: Message) -> list[int]:
        """In its first attempt."""
        begun("blocks_the_loop", message)
        if message.attempt == 1:
            time.sleep(seconds)  # noqa: ASYNC251 (that is what it is for)
        return [message.attempt, os.getpid()]

    @app.task
    def blocks(seconds: float, message: Message) -> int:
        begun("blocks", message)
        time.sleep(seconds)  # it is what it is for
        return message.attempt

    @app.task
    async def trip(number: int, message: Message) -> list[str]:
        here = begun("trip", message)

        def does(what: str) -> Callable[[], str]:
            def do() -> str:
                begun(what, message)
                return f"{what} {number}"

            return do

        done = [await step("book", does("book"))]
        here.crash_at("between")
        done.append(await step("pay", does("pay")))
        return done

    @app.task
    async def order(key: str, message: Message) -> list[Any]:
        here = begun("order", message)

        def charge() -> str:
            begun("charge", message)
            return f"charged {key}"

        charged = await step("charge", charge)
        paid = await wait_for("paid", key=key)
        here.crash_at("between")
        return [charged, paid]

    return app


class TaskWorkerApp(WorkerApp):
    """The shop's worker, what it is told, and what it tells."""

    options: TaskOptions

    def __init__(self, url: str, options: TaskOptions) -> None:
        if options.at == "committing":
            options.crash = options.at
        super().__init__(url, options)
        if options.open:
            self.go.set()

    def crash_at(self, step: Step | TaskStep) -> None:
        if self.options.at == step:
            die()

    def is_victim(self, messages: Iterable[Message]) -> bool:
        return any(message.type == self.options.of for message in messages)

    def settled(self, outcomes: Sequence[Outcome]) -> None:
        if not self.options.quiet:
            for outcome in outcomes:
                message = outcome.delivery.message
                self.tell("settled", id=message.id, task=message.type, action=outcome.action.value)

    async def run(self) -> None:
        if not self.options.send:
            await super().run()
            return
        async with self.app:
            await self.app.tasks["once"].delay(7)

    def _app(self, backend: Backend) -> Carteiro:
        options = self.options
        app = shop(backend, options, self)
        opened = app._open_store
        app._open_store = lambda url: SabotagedStore(opened(url), self)  # type: ignore[method-assign]
        return app


class SabotagedStore(Layer):
    """A store apart from the broker, by whose writes a worker dies."""

    _worker: TaskWorkerApp

    def __init__(self, inner: Any, worker: TaskWorkerApp) -> None:
        super().__init__(inner)
        self._worker = worker
        self._answers = not worker.options.unanswered

    async def write(self, writes: Sequence[Write]) -> Sequence[bool]:
        mine = any(map(self._is_ending, writes))
        if mine:
            self._worker.crash_at("ended")
        done: Sequence[bool] = await self._inner.write(writes)
        if mine:
            self._worker.crash_at("written")
            if not self._answers:
                self._answers = True
                raise BrokerUnavailable("it did what it was asked, and cannot say so")
        return done

    async def join(self, joins: Sequence[Join]) -> Sequence[bool]:
        done: Sequence[bool] = await self._inner.join(joins)
        self._worker.crash_at("joined")
        return done

    def _is_ending(self, write: Write) -> bool:
        if not write.key.startswith("task:") or write.value is None:
            return False
        record = record_of(Entry(write.value, 1))
        return record is not None and record.task == self._worker.options.of and record.is_over


if __name__ == "__main__":

    async def work() -> None:
        options = msgspec.json.decode(sys.argv[2], type=TaskOptions)
        await main(TaskWorkerApp(sys.argv[1], options))

    asyncio.run(work())
