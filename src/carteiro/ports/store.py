"""The port that keeps state: bytes by key, with versions to compare and times to expire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from carteiro.message import Join, Write


class Entry(msgspec.Struct, frozen=True):
    """A stored value and its version. Versions of a key only grow, and start at 1."""

    value: bytes
    version: int


def scan_end(prefix: str, before: str | None) -> bytes:
    """Where a scan ends, in UTF-8: all that start with `prefix` are less, as no key has the byte 0xff."""
    end = prefix.encode() + b"\xff"
    return end if before is None else min(end, before.encode())


class Store(Protocol):
    """State that outlives a process. Expired keys are as if they were not there."""

    async def connect(self) -> None: ...

    async def close(self) -> None: ...

    async def get(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """Those of `keys` that are there."""
        ...

    async def scan(self, prefix: str, *, before: str | None = None, limit: int | None = None) -> Mapping[str, Entry]:
        """Those whose key starts with `prefix` and is less than `before`, in the order of their keys; at most `limit`.

        Their order is that of code points, and so of the bytes in UTF-8. It costs as much as it returns: however many
        more keys there are, with this prefix or without, the first is found as fast.
        """
        ...

    async def write(self, writes: Sequence[Write]) -> Sequence[bool]:
        """Apply each write on its own; False where the version was not the one expected. One commit for all."""
        ...

    async def join(self, joins: Sequence[Join]) -> Sequence[bool]:
        """Make each join on its own, its writes too; one commit for all. True where its emits are to be published.

        They are made in the order given.
        """
        ...

    async def changed(self, versions: Mapping[str, int]) -> Mapping[str, Entry | None]:
        """Wait until the version of one of these keys is another than is given (0 for none); returns those.

        It is told by the store, and polls nothing. None is for a key that was deleted; that one has expired is noticed
        only if something else wakes it, and that one was deleted and written again only where its version tells. A
        cancelled wait leaves nothing behind. Raises BrokerUnavailable while the store is away.
        """
        ...
