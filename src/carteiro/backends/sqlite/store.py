"""The Store port on the broker's own file, so that what an outcome writes is in the commit of its settle."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

from carteiro.backends.sqlite import entries
from carteiro.backends.sqlite.database import Database
from carteiro.backends.sqlite.joins import make
from carteiro.backends.sqlite.session import Session
from carteiro.backends.sqlite.waits import Wait
from carteiro.errors import NotConnected
from carteiro.message import Join, Write
from carteiro.ports.store import Entry, scan_end


class SqliteStore:
    """Shares the database with its broker; either can be connected without the other."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connected = False

    async def connect(self) -> None:
        if not self._connected:
            await self._database.open()
            self._connected = True

    async def close(self) -> None:
        if self._connected:
            self._connected = False
            await self._database.close()

    async def get(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        return await self._database.read(lambda session: entries.read(session, keys))

    async def scan(self, prefix: str, *, before: str | None = None, limit: int | None = None) -> Mapping[str, Entry]:
        bounds = {"prefix": prefix, "end": scan_end(prefix, before), "limit": -1 if limit is None else limit}

        def look(session: Session) -> Mapping[str, Entry]:
            rows = session.run("store_scan", bounds | {"now": session.now}).fetchall()
            return {key: Entry(value, version) for key, value, version in rows}

        return await self._database.read(look)

    async def write(self, writes: Sequence[Write]) -> Sequence[bool]:
        return await self._database.write(lambda session: entries.write(session, [[one] for one in writes]))

    async def join(self, joins: Sequence[Join]) -> Sequence[bool]:
        return await self._database.write(lambda session: make(session, joins))

    async def changed(self, versions: Mapping[str, int]) -> Mapping[str, Entry | None]:
        """Raises NotConnected where the file is closed meanwhile."""
        wait = Wait(versions)
        self._database.put(wait)
        try:
            return await wait.future
        except asyncio.CancelledError:
            with contextlib.suppress(NotConnected):  # closed meanwhile, and gone with the rest
                self._database.put(wait)
            raise
