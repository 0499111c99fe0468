"""The store's entries, without awaiting, so that a settle can change them in its own step."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from carteiro.backends.memory.order import Order
from carteiro.message import Write
from carteiro.ports.clock import Clock
from carteiro.ports.store import Entry


class _Kept(msgspec.Struct, frozen=True):
    entry: Entry
    expires: float | None


class Entries:
    """Values with versions. A key that was deleted or has expired starts again at version 1."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: dict[str, _Kept] = {}
        self._order = Order()
        self._expiries: list[tuple[float, str]] = []
        self._watchers: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)

    def get(self, key: str) -> Entry | None:
        kept = self._kept.get(key)
        if kept is None or (kept.expires is not None and kept.expires <= self._clock.time()):
            return None
        return kept.entry

    def scan(self, prefix: str, before: str | None) -> Iterator[tuple[str, Entry]]:
        """Those whose key starts with `prefix` and is less than `before`, in order. Write nothing while it runs."""
        for key in self._order.since(prefix):
            if not key.startswith(prefix) or (before is not None and key >= before):
                return
            if (entry := self.get(key)) is not None:
                yield key, entry

    def write(self, write: Write) -> bool:
        """Apply one write; False, and nothing done, where the version is not the one expected."""
        self._drop_expired()
        before = self._kept.get(write.key)
        version = 0 if before is None else before.entry.version
        if write.expect is not None and write.expect != version:
            return False
        self._wake(write.key)
        if write.value is None:
            self._drop(write.key)
            return True
        expires = None if write.ttl is None else self._clock.time() + write.ttl
        self._keep(write.key, _Kept(Entry(write.value, version + 1), expires))
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
                self._drop(key)
            else:
                self._keep(key, kept)
        return False

    def other_than(self, versions: Mapping[str, int]) -> dict[str, Entry | None]:
        """Those of these keys whose version is another."""
        found = {key: self.get(key) for key in versions}
        return {key: entry for key, entry in found.items() if (entry.version if entry else 0) != versions[key]}

    @contextlib.contextmanager
    def watched(self, keys: Iterable[str], watcher: asyncio.Future[None]) -> Iterator[None]:
        """`watcher` is done as soon as one of these may have changed."""
        for key in keys:
            self._watchers[key].add(watcher)
        try:
            yield
        finally:
            for key in keys:
                self._watchers[key].discard(watcher)
                if not self._watchers[key]:
                    del self._watchers[key]

    def _keep(self, key: str, kept: _Kept) -> None:
        if key not in self._kept:
            self._order.add(key)
        self._kept[key] = kept

    def _drop(self, key: str) -> None:
        if self._kept.pop(key, None) is not None:
            self._order.remove(key)

    def _wake(self, key: str) -> None:
        for watcher in self._watchers.get(key, ()):
            if not watcher.done():
                watcher.set_result(None)

    def _drop_expired(self) -> None:
        now = self._clock.time()
        while self._expiries and self._expiries[0][0] <= now:
            expires, key = heapq.heappop(self._expiries)
            kept = self._kept.get(key)
            if kept is not None and kept.expires == expires:
                self._drop(key)
