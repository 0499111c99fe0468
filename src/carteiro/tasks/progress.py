"""How far a task is, for others to read while it runs."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from carteiro.errors import BrokerUnavailable
from carteiro.message import Write
from carteiro.tasks.context import current_bench
from carteiro.tasks.records import PART_TTL, Progress, pack, progress_key

if TYPE_CHECKING:
    from carteiro.tasks.bench import Bench


def set_progress(done: float, total: float | None = None, note: str | None = None) -> None:
    """Say how far the task that calls it is; `result.progress()` reads it, also when the task is over.

    It returns at once: what is said is written in the background, the newest only, so that a tight loop may call it.
    For tasks on the loop and in threads; raises ConfigurationError elsewhere.
    """
    context, bench = current_bench("set_progress(…)")
    total = None if total is None else float(total)
    bench.tell(context.id, Progress(float(done), total, None if note is None else str(note), bench.clock.time()))


class Teller:
    """Writes the newest progress of each task, one write at a time; called on the loop or in any thread."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._loop = asyncio.get_running_loop()
        self._newest: dict[str, Progress] = {}
        self._writing: asyncio.Task[None] | None = None

    def tell(self, id: str, progress: Progress) -> None:
        self._newest[id] = progress
        self._loop.call_soon_threadsafe(self._begin)

    async def drain(self) -> None:
        while self._writing is not None:
            await asyncio.shield(self._writing)

    def _begin(self) -> None:
        if self._writing is None and self._newest:
            self._writing = self._loop.create_task(self._write(), name="carteiro progress")

    async def _write(self) -> None:
        try:
            while self._newest:
                newest, self._newest = self._newest, {}
                writes = [Write(progress_key(id), pack(one), ttl=PART_TTL) for id, one in newest.items()]
                with contextlib.suppress(BrokerUnavailable):  # the next one tells more
                    await self._bench.store.write(writes)
        finally:
            self._writing = None
