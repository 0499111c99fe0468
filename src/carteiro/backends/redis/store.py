"""The Store port on a Redis server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from carteiro.backends.redis import scripts
from carteiro.backends.redis.publishing import raw
from carteiro.backends.redis.server import Server
from carteiro.backends.redis.settling import join_of, write_of
from carteiro.backends.redis.watch import Watch
from carteiro.message import Join, Write
from carteiro.ports.store import Entry, scan_end


class RedisStore:
    def __init__(self, server: Server) -> None:
        self._server = server
        self._connected = False
        self._watch = Watch(server)

    async def connect(self) -> None:
        if not self._connected:
            await self._server.link.open()
            self._connected = True

    async def close(self) -> None:
        if self._connected:
            self._connected = False
            await self._server.link.close()

    async def get(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        wanted = list(dict.fromkeys(keys))
        found: dict[str, Entry] = {}
        while wanted:
            last, *entries = await self._server.run(scripts.READ, wanted)
            found |= _entries(entries)
            wanted = [] if last is None else wanted[wanted.index(last.decode()) + 1 :]
        return found

    async def scan(self, prefix: str, *, before: str | None = None, limit: int | None = None) -> Mapping[str, Entry]:
        """In as many steps as it takes: what is written meanwhile may or may not be among them."""
        found: dict[str, Entry] = {}
        start: bytes | None = b"[" + prefix.encode()
        end = raw(b"(" + scan_end(prefix, before))
        while start is not None and len(found) != limit:
            left = False if limit is None else limit - len(found)
            last, *entries = await self._server.run(scripts.READ, False, raw(start), end, left)
            found |= _entries(entries)
            start = None if last is None else b"(" + last
        return found

    async def write(self, writes: Sequence[Write]) -> Sequence[bool]:
        if not writes:
            return []
        return [bool(done) for done in await self._server.run(scripts.WRITE, *map(write_of, writes))]

    async def join(self, joins: Sequence[Join]) -> Sequence[bool]:
        if not joins:
            return []
        return [bool(full) for full in await self._server.run(scripts.JOIN, *map(join_of, joins))]

    async def changed(self, versions: Mapping[str, int]) -> Mapping[str, Entry | None]:
        """All is looked at again every ten seconds, and so an end by expiry is noticed too, but late."""
        return await self._watch.changed(versions)


def _entries(answer: Sequence[Any]) -> dict[str, Entry]:
    return {
        key.decode(): Entry(value, int(version))
        for key, version, value in zip(answer[::3], answer[1::3], answer[2::3], strict=True)
    }
