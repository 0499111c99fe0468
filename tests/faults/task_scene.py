"""The shop that sends tasks to workers of its own, and the ledger that tells what these called."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from carteiro import Carteiro
from carteiro.errors import BrokerUnavailable
from carteiro.message import Outgoing, Write
from carteiro.ports.store import Store
from carteiro.tasks.result import TaskResult
from carteiro.tasks.task import Task
from tests.faults.processes import WorkerProcess
from tests.faults.scene import LOOK, PATIENCE, Scene
from tests.faults.task_worker import TaskOptions, TaskStep, shop
from tests.faults.worker import Step

TOPIC = "tasks.shop.default"
LEASE = 0.5


class TaskScene:
    """One test's tasks. `options` are those of all its workers."""

    def __init__(self, here: Scene, app: Carteiro, options: TaskOptions) -> None:
        self.app = app
        self.options = options
        self._here = here

    @property
    def store(self) -> Store:
        store = self.app.connection.store
        assert store is not None
        return store

    def __getitem__(self, name: str) -> Task[..., Any, Any]:
        return self.app.tasks[name]

    # -- doing -------------------------------------------------------------------------------------------------------

    async def start(self, **options: Any) -> WorkerProcess:
        """Start a worker, and do not wait for it."""
        return await self._here.worker(self.some(**options), ready=False)

    async def worker(self, **options: Any) -> WorkerProcess:
        """Start one; return when it consumes."""
        return await self._here.worker(self.some(**options))

    def some(self, **options: Any) -> TaskOptions:
        """The options of all its workers, and these."""
        return msgspec.structs.replace(self.options, **options)

    async def kill_at(self, steps: Sequence[Step | TaskStep], task: str) -> None:
        """Have one worker after another die at these steps of this task."""
        for step in steps:
            victim = await self.start(at=step, of=task, open=True)
            code = await self._here.wait(victim.ended(), f"a worker to kill itself at `{step}` of {task}")
            assert code == -signal.SIGKILL, f"at `{step}`: {victim}"

    async def freeze(self, worker: WorkerProcess) -> None:
        """As `Scene.freeze`; outside of its commits to the store, too."""
        while True:
            await self._here.freeze(worker)
            try:
                await self.store.write([Write("a test's", b"")])
                return
            except BrokerUnavailable:
                worker.thaw()

    async def got(self, result: TaskResult[Any]) -> Any:
        """What it returned, or raised."""
        return await self._here.wait(result.get(), f"the result of {result!r}; {self._ledger()}")

    async def publish_again(self, id: str, name: str) -> None:
        """As a publisher that has lost an answer would, or a broker: with the same id and headers."""
        run = id.rpartition(".")[0]
        again = Outgoing(id, TOPIC, b"", None, {"type": name, "run": run}, run)
        await self._here.broker.publish([again])

    # -- seeing ------------------------------------------------------------------------------------------------------

    async def until_nothing_is_left(self) -> None:
        """Return when each message of a task is done or dead."""
        await self._here.wait(self._nothing_is_left(), f"all tasks to be settled; {self._ledger()}")

    async def _nothing_is_left(self) -> None:
        while await self._here.left(TOPIC):  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(LOOK)

    def calls(self, name: str) -> list[tuple[str, int]]:
        """The message and the attempt of each call of this task or step, in order."""
        lines = [line.split() for line in self._ledger().splitlines()]
        return [(id, int(attempt)) for called, id, attempt in lines if called == name]

    def ids(self, name: str) -> list[str]:
        """The messages of the calls, each once, in the order of their first."""
        return list(dict.fromkeys(id for id, _ in self.calls(name)))

    def _ledger(self) -> str:
        path = Path(self.options.ledger)
        return path.read_text() if path.exists() else ""


@contextlib.asynccontextmanager
async def task_scene(here: Scene, folder: Path, *, store: str | None) -> AsyncIterator[TaskScene]:
    options = TaskOptions(lease=LEASE, ledger=str(folder / "ledger"), store=store, grace=PATIENCE)
    async with shop(here.url, options) as app:
        yield TaskScene(here, app, options)
