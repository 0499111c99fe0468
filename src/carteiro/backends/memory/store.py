"""The in-memory store: values with versions that expire."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import msgspec

from carteiro.message import Write
from carteiro.ports.clock import Clock
from carteiro.ports.store import Entry


class _Kept(msgspec.Struct, frozen=True):
    entry: Entry
    expires: float | None


class Entries:
    """The store's contents, without awaiting, so that a settle can change them in its own step.

    A key that was deleted or has expired starts again at version 1.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: dict[str, _Kept] = {}
        self._expiries: list[tuple[float, str]] = []

    def get(self, key: str) -> Entry | None:
        kept = self._kept.get(key)
        if kept is None or (kept.expires is not None and kept.expires <= self._clock.time()):
            return None
        return kept.entry

    def keys(self) -> Sequence[str]:
        return sorted(self._kept)

    def write(self, write: Write) -> bool:
        """Apply one write; False, and nothing done, where the version is not the one expected."""
        self._drop_expired()
        before = self._kept.get(write.key)
        version = 0 if before is None else before.entry.version
        if write.expect is not None and write.expect != version:
            return False
        if write.value is None:
            self._kept.pop(write.key, None)
            return True
        expires = None if write.ttl is None else self._clock.time() + write.ttl
        self._kept[write.key] = _Kept(Entry(write.value, version + 1), expires)
        if expires is not None:
            heapq.heappush(self._expiries, (expires, write.key))
        return True

    def write_all(self, writes: Sequence[Write]) -> bool:
        """Apply all of `writes` in order or, where one does not find the version it expects, none."""
        before = {write.key: self._kept.get(write.key) for write in writes}
        if all(self.write(write) for write in writes):
            return True
        for key, kept in before.items():
            if kept is None:
                self._kept.pop(key, None)
            else:
                self._kept[key] = kept
        return False

    def _drop_expired(self) -> None:
        now = self._clock.time()
        while self._expiries and self._expiries[0][0] <= now:
            expires, key = heapq.heappop(self._expiries)
            kept = self._kept.get(key)
            if kept is not None and kept.expires == expires:
                del self._kept[key]


class MemoryStore:
    """The Store port on `Entries`."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries

    async def connect(self) -> None: ...

    async def close(self) -> None: ...

    async def get(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        return {key: entry for key in keys if (entry := self._entries.get(key)) is not None}

    async def scan(self, prefix: str) -> Mapping[str, Entry]:
        return await self.get([key for key in self._entries.keys() if key.startswith(prefix)])  # noqa: SIM118

    async def write(self, writes: Sequence[Write]) -> Sequence[bool]:
        return [self._entries.write(write) for write in writes]
