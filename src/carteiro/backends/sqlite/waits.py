"""Waits for entries of the store to change: parked with the thread, as fetches are (see `database.py`).

What this process writes wakes them in the turn of its commit: each transaction says which keys it touched. When another
process has committed, one statement reads the versions of all that is awaited. Where nobody waits nothing is read.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from typing import Final

from carteiro.backends.sqlite import entries
from carteiro.backends.sqlite.session import Session
from carteiro.ports.store import Entry

_UNSEEN: Final = -1


class Wait:
    """A wait for one of these keys to have another version. Cancelled, it is put to the thread once more, and goes."""

    __slots__ = ("future", "loop", "versions")

    def __init__(self, versions: Mapping[str, int]) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Mapping[str, Entry | None]] = self.loop.create_future()
        self.versions = dict(versions)


class Waits:
    """All that are parked."""

    def __init__(self) -> None:
        self._by_key: defaultdict[str, set[Wait]] = defaultdict(set)
        self._new: set[str] = set()
        """Keys of those that have not been looked at yet."""
        self._seen = _UNSEEN  # the data version at the last look

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def take(self, wait: Wait) -> None:
        """Park it or, if nobody waits any more, forget it."""
        if wait.future.done():
            self._drop(wait)
            return
        for key in wait.versions:
            self._by_key[key].add(wait)
        self._new.update(wait.versions)

    def take_all(self) -> set[Wait]:
        """Those that are parked; they are no longer."""
        waits = {wait for parked in self._by_key.values() for wait in parked}
        self._by_key.clear()
        return waits

    def woken(self, session: Session) -> list[tuple[Wait, dict[str, Entry | None]]]:
        """Those for which something has changed, with what; they are parked no longer."""
        version = session.data_version()
        touched, session.touched = session.touched, set()
        keys = [key for key in touched | self._new if key in self._by_key]
        if version != self._seen:
            keys = [*self._by_key]
        self._seen = version
        self._new.clear()
        if not keys:
            return []
        versions = entries.versions(session, keys)
        found: defaultdict[Wait, list[str]] = defaultdict(list)
        for key in keys:
            for wait in self._by_key[key]:
                if wait.versions[key] != versions.get(key, 0):
                    found[wait].append(key)
        values = entries.read(session, {key for changed in found.values() for key in changed}) if found else {}
        for wait in found:
            self._drop(wait)
        return [(wait, {key: values.get(key) for key in changed}) for wait, changed in found.items()]

    def _drop(self, wait: Wait) -> None:
        for key in wait.versions:
            parked = self._by_key.get(key, set())
            parked.discard(wait)
            if not parked:
                self._by_key.pop(key, None)
