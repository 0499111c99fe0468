"""The workers of one app in one process, one for each broker that it consumes from: they begin and end together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from carteiro.engine.worker import Worker


class Crew:
    """Runs its workers as if they were one."""

    def __init__(self, workers: Mapping[str, Worker]) -> None:
        self.workers = workers

    def start(self) -> None:
        for worker in self.workers.values():
            worker.start()

    async def run_until_stopped(self) -> None:
        """Return after `request_stop`; raise what makes it impossible for any of them to go on."""
        running = [worker.run_until_stopped() for worker in self.workers.values()]
        await _side_by_side(running, until=asyncio.FIRST_COMPLETED)

    def request_stop(self) -> None:
        """Have `run_until_stopped` return; when the stop is under way already, skip the grace."""
        for worker in self.workers.values():
            worker.request_stop()

    async def stop(self, grace: float) -> None:
        """Stop all of them within about `grace` seconds; returns when all is settled and closed."""
        stopping = [worker.stop(grace) for worker in self.workers.values()]
        await _side_by_side(stopping, until=asyncio.ALL_COMPLETED)

    def hurry(self) -> None:
        """End the grace of a stop that is under way, or have none when it comes to that."""
        for worker in self.workers.values():
            worker.hurry()


async def _side_by_side(calls: Sequence[Coroutine[Any, Any, None]], until: str) -> None:
    """Await the first or all of them, and cancel what is left; raises what one has died of."""
    if len(calls) == 1:  # most apps have one broker, and stop as many turns of the loop sooner
        await calls[0]
        return
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        done, _ = await asyncio.wait(tasks, return_when=until)
    finally:
        for task in tasks:
            task.cancel()
    errors = [error for task in done if (error := task.exception()) is not None]
    if errors:
        raise errors[0]
