"""The bare loop's common part: what it asks of a system, and what a batch of it came to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import msgspec

from carteiro.message import Message

LEASE = 30.0
"""Seconds."""
ATTEMPTS = 5

Held: TypeAlias = tuple[Any, int]
"""A delivery's id in its system, and its attempt, which is the fence."""


class Settled(msgspec.Struct):
    """How a batch ended: acked, failed at so many seconds from now, dead with a reason."""

    acked: list[Held] = []
    retried: list[tuple[float, Held]] = []
    dead: list[tuple[str, Held]] = []

    def by_attempt(self) -> dict[int, list[Any]]:
        """The ids of what is acked. What an attempt has in common is said once: one statement for a batch."""
        found: dict[int, list[Any]] = {}
        for id, attempt in self.acked:
            found.setdefault(attempt, []).append(id)
        return found


class Bare(Protocol):
    """A system by hand, with carteiro's guarantees: leases, fences, retries at their time, dead letters."""

    async def turn(self, settled: Settled) -> Sequence[Any]:
        """Settle one batch and claim the next one. None are left where it gives none."""
        ...

    def held(self, row: Any) -> Held: ...

    def message(self, row: Any) -> Message: ...

    async def renew(self, held: Sequence[Held]) -> None: ...
