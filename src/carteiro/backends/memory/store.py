"""The in-memory store: values with versions that expire, and sets that are joined."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence

from carteiro.backends.memory.entries import Entries
from carteiro.backends.memory.joins import Joins
from carteiro.errors import NotConnected
from carteiro.message import Join, Write
from carteiro.ports.store import Entry


class MemoryStore:
    """The Store port on `Entries` and `Joins`."""

    def __init__(self, entries: Entries, joins: Joins) -> None:
        self._entries = entries
        self._joins = joins
        self._waiting: set[asyncio.Future[None]] = set()

    async def connect(self) -> None: ...

    async def close(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(NotConnected("this store is closed: it tells of no more changes"))

    async def get(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        return {key: entry for key in keys if (entry := self._entries.get(key)) is not None}

    async def scan(self, prefix: str, *, before: str | None = None, limit: int | None = None) -> Mapping[str, Entry]:
        return dict(itertools.islice(self._entries.scan(prefix, before), limit))

    async def write(self, writes: Sequence[Write]) -> Sequence[bool]:
        return [self._entries.write(write) for write in writes]

    async def join(self, joins: Sequence[Join]) -> Sequence[bool]:
        return [self._joins.make(join) for join in joins]

    async def changed(self, versions: Mapping[str, int]) -> Mapping[str, Entry | None]:
        """Raises NotConnected where the store is closed meanwhile."""
        while not (found := self._entries.other_than(versions)):
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.add(waiter)
            try:
                with self._entries.watched(versions, waiter):
                    await waiter
            finally:
                self._waiting.discard(waiter)
        return found
