"""The port that keeps state: bytes by key, with versions to compare and times to expire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from carteiro.message import Write


class Entry(msgspec.Struct, frozen=True):
    """A stored value and its version. Versions of a key only grow, and start at 1."""

    value: bytes
    version: int


class Store(Protocol):
    """State that outlives a process. Expired keys are as if they were not there."""

    async def connect(self) -> None: ...

    async def close(self) -> None: ...

    async def get(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """Those of `keys` that are there."""
        ...

    async def scan(self, prefix: str) -> Mapping[str, Entry]:
        """All whose key starts with `prefix`, in the order of their keys."""
        ...

    async def write(self, writes: Sequence[Write]) -> Sequence[bool]:
        """Apply each write on its own; False where the version was not the one expected. One commit for all."""
        ...
