"""The store's sets, without awaiting, so that a settle can add to them in its own step.

Of a full set nothing is left but who completed it: that alone decides what a later add of it does.
"""

from __future__ import annotations

import heapq

import msgspec

from carteiro.backends.memory.entries import Entries
from carteiro.message import Join
from carteiro.ports.clock import Clock


class _Set(msgspec.Struct):
    """`completed` is the member and the actor that filled it; the set holds no members from then on."""

    members: set[str]
    completed: tuple[str, str] | None
    expires: float | None


class Joins:
    """The sets of one store. What a join writes goes into `entries`."""

    def __init__(self, clock: Clock, entries: Entries) -> None:
        self._clock = clock
        self._entries = entries
        self._sets: dict[str, _Set] = {}
        # One for each set that expires, of the time when it would have when it was put here.
        self._expiries: list[tuple[float, str]] = []

    def make(self, join: Join) -> bool:
        """Add, and write where that completes the set; True where the join's emits are to be published."""
        self._drop_expired()
        kept = self._sets.setdefault(join.key, _Set(set(), None, None))
        if kept.completed is not None:
            return kept.completed == (join.member, join.actor)
        if join.member in kept.members:
            return False
        kept.members.add(join.member)
        self._remember(join, kept)
        if len(kept.members) < join.size:
            return False
        kept.members, kept.completed = set(), (join.member, join.actor)
        for write in join.writes:
            self._entries.write(write)
        return True

    def _remember(self, join: Join, kept: _Set) -> None:
        is_listed = kept.expires is not None
        kept.expires = None if join.ttl is None else self._clock.time() + join.ttl
        if kept.expires is not None and not is_listed:
            heapq.heappush(self._expiries, (kept.expires, join.key))

    def _drop_expired(self) -> None:
        now = self._clock.time()
        while self._expiries and self._expiries[0][0] <= now:
            _, key = heapq.heappop(self._expiries)
            kept = self._sets.get(key)
            if kept is None or kept.expires is None:
                continue
            if kept.expires <= now:
                del self._sets[key]
            else:
                heapq.heappush(self._expiries, (kept.expires, key))
