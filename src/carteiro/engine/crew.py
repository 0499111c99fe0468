"""The workers of one app in one process, one for each broker that it consumes from: they begin and end together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from carteiro.engine.worker import Worker


class Crew:
    """Runs its workers as if they were one."""

    def __init__(self, workers: Mapping[str, Worker]) -> None:
        self.workers = dict(workers)
        self._running: set[asyncio.Task[None]] = set()
        self._added = asyncio.Event()
        self.stopping = False
        """Whether it is too late to add one."""

    def start(self) -> None:
        for worker in self.workers.values():
            worker.start()

    async def run_until_stopped(self) -> None:
        """Return after `request_stop`; raise what makes it impossible for any of them to go on."""
        self._running = {asyncio.ensure_future(worker.run_until_stopped()) for worker in self.workers.values()}
        try:
            while not any(task.done() for task in self._running):
                self._added.clear()
                added = asyncio.ensure_future(self._added.wait())
                try:
                    await asyncio.wait((*self._running, added), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    added.cancel()
        finally:
            done = [task for task in self._running if task.done()]
            for task in self._running:
                task.cancel()
        for task in done:
            task.result()

    def add(self, name: str, worker: Worker) -> None:
        """Have a further worker, once they run."""
        self.workers[name] = worker
        worker.start()
        self._running.add(asyncio.ensure_future(worker.run_until_stopped()))
        self._added.set()

    def request_stop(self) -> None:
        """Have `run_until_stopped` return; when the stop is under way already, skip the grace."""
        for worker in self.workers.values():
            worker.request_stop()

    async def stop(self, grace: float) -> None:
        """Stop all of them within about `grace` seconds; returns when all is settled and closed."""
        self.stopping = True
        stopping = [worker.stop(grace) for worker in self.workers.values()]
        await _all(stopping)

    def hurry(self) -> None:
        """End the grace of a stop that is under way, or have none when it comes to that."""
        for worker in self.workers.values():
            worker.hurry()


async def _all(calls: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Await all of them; raises what one has died of."""
    if len(calls) == 1:  # most apps have one broker, and stop as many turns of the loop sooner
        await calls[0]
        return
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        done, _ = await asyncio.wait(tasks)
    finally:
        for task in tasks:
            task.cancel()
    errors = [error for task in done if (error := task.exception()) is not None]
    if errors:
        raise errors[0]
