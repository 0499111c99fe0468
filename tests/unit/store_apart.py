"""A TestApp whose store is not its broker's own, as on RabbitMQ, and whose workers can die by that store's writes."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any, Literal, cast, get_args

from carteiro.message import Join, Write
from carteiro.ports.broker import Backend
from carteiro.ports.registry import open_backend
from carteiro.ports.store import Entry
from carteiro.tasks.records import Record, record_of
from carteiro.testing import TestApp

Apart = Literal["ended", "written", "joined"]
"""Where a worker can die besides: the record is next, it is in the store, and so are the joins. What follows is
published then; `before_ack` is after that."""


class StoreApart:
    """Stands in for the backend of a TestApp, before that is entered; `crashes` are tasks and where to die of them."""

    def __init__(self, t: TestApp, crashes: Sequence[tuple[str, str]] = ()) -> None:
        (tap,) = t._taps.values()
        self.broker = tap.inner.broker
        self.store = self
        self._inner = open_backend("memory://", clock=t.clock).store
        self._crashes = [crash for crash in crashes if crash[1] in get_args(Apart)]
        self._die = t._crash
        tap.inner = cast(Backend, self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def write(self, writes: Sequence[Write]) -> Sequence[bool]:
        ended = {record.task for one in writes if (record := ending_of(one)) is not None}
        await self._crash("ended", ended)
        assert self._inner is not None
        done = await self._inner.write(writes)
        await self._crash("written", ended)
        return done

    async def join(self, joins: Sequence[Join]) -> Sequence[bool]:
        assert self._inner is not None
        done = await self._inner.join(joins)
        await self._crash("joined", {name for name, _ in self._crashes})
        return done

    async def _crash(self, point: Apart, names: Collection[str]) -> None:
        """The worker dies, once for each crash, if it has come to this point with one of these tasks."""
        for crash in self._crashes:
            if crash[1] == point and crash[0] in names:
                self._crashes.remove(crash)
                self._die()
                await asyncio.Event().wait()


def ending_of(write: Write) -> Record | None:
    """What is written of a task that is over."""
    if not write.key.startswith("task:") or write.value is None:
        return None
    record = record_of(Entry(write.value, 1))
    return record if record is not None and record.is_over else None
