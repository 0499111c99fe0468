"""In place of workers, where a service leaves all its queues to others and is to go on all the same."""

from __future__ import annotations

import asyncio

from carteiro.engine.crew import Crew


class IdleCrew(Crew):
    """Waits until it is stopped."""

    def __init__(self) -> None:
        super().__init__({})
        self._stop_requested = asyncio.Event()

    async def run_until_stopped(self) -> None:
        await self._stop_requested.wait()

    def request_stop(self) -> None:
        self._stop_requested.set()

    async def stop(self, grace: float) -> None: ...
