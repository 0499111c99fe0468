"""From a `sqlite://` URL to a backend."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from carteiro.backends.sqlite.broker import SqliteBroker
from carteiro.backends.sqlite.connection import Location, parse
from carteiro.backends.sqlite.database import Database
from carteiro.backends.sqlite.doctor import examine
from carteiro.backends.sqlite.store import SqliteStore
from carteiro.ports.broker import Check
from carteiro.ports.clock import Clock


def open_backend(url: str, *, clock: Clock) -> SqliteBackend:
    """`sqlite:///relative.db`, `sqlite:////absolute.db`; options `?synchronous=full|normal&busy_timeout=SECONDS`.

    Touches no file yet. Raises ConfigurationError for what it does not understand.
    """
    return SqliteBackend(parse(url), clock)


class SqliteBackend:
    """One file as broker and store."""

    def __init__(self, location: Location, clock: Clock) -> None:
        self._location = location
        database = Database(location, clock)
        self.store = SqliteStore(database)
        self.broker = SqliteBroker(database, self.store)

    async def doctor(self) -> Sequence[Check]:
        return await asyncio.to_thread(examine, self._location)
