"""The writing connection as the statements of one transaction see it: the time, the routes, the fence."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from carteiro.backends.sqlite.connection import Location, open_writer
from carteiro.backends.sqlite.patience import patiently
from carteiro.backends.sqlite.routes import STALE, Routes
from carteiro.backends.sqlite.statements import SQL
from carteiro.errors import BrokerUnavailable
from carteiro.ports.clock import Clock

T = TypeVar("T")

BLOCKED: Final = 2**63 - 1
"""`visible_at` of what waits behind another of its lane."""


def micros(seconds: float) -> int:
    return round(seconds * 1_000_000)


class Session:
    """For one thread. `now`, in microseconds, stands still within a transaction.

    `careful` is whether this transaction is run a second time, since something in the first did not hold: then each
    request looks before it acts. The first time it only counts afterwards what it did. `touched` are the keys of the
    store that it changed.
    """

    def __init__(self, location: Location, clock: Clock) -> None:
        self.location = location
        self.clock = clock
        self.routes = Routes()
        self.now = 0
        self.careful = False
        self.touched: set[str] = set()
        # Its own: two processes that seed Python's are not to agree on a token.
        self._random = random.Random(os.urandom(16))
        self.connection = self._patiently(lambda: open_writer(location))
        self._path = os.path.abspath(location.path)
        self._file = os.stat(self._path)

    def run(self, name: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> sqlite3.Cursor:
        """Execute a statement of `statements.sql`."""
        return self.connection.execute(SQL[name], parameters)

    def begin(self, *, careful: bool = False) -> None:
        """Take the file's write lock and read what others may have changed. Raises sqlite3.Error, BrokerUnavailable."""
        self._check_in_place()
        self.careful = careful
        self.touched = set()
        self._patiently(lambda: self.connection.execute("BEGIN IMMEDIATE"))
        self.look()

    def look(self) -> None:
        """Bring the time and the routes up to now."""
        self.now = micros(self.clock.time())
        (version,) = self._patiently(lambda: self.run("routes_version").fetchone())
        if version != self.routes.version:
            self.routes.load(self.connection, version)

    def data_version(self) -> int:
        """Another one after each commit of another connection."""
        version: int = self._patiently(lambda: self.connection.execute("PRAGMA data_version").fetchone()[0])
        return version

    def commit(self) -> None:
        self.connection.execute("COMMIT")

    def rollback(self) -> None:
        """Also where SQLite has rolled back by itself, as it does when the disk is full."""
        self.routes.version = STALE
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    def routes_changed(self) -> None:
        """Tell every process to read the routes again, and do so here."""
        self.run("routes_changed")
        self.routes.load(self.connection, self.routes.version + 1)

    def new_token(self) -> int:
        """The fence of a claim: a number that no other claim has, from 63 random bits. A counter cost a statement."""
        return self._random.getrandbits(63) or 1

    def close(self) -> None:
        self.connection.close()

    def _check_in_place(self) -> None:
        """What is written to a file that others do not find under its name any more is lost (1.5 µs a transaction)."""
        try:
            if os.path.samestat(os.stat(self._path), self._file):
                return
        except OSError:
            pass
        raise BrokerUnavailable(
            f"the broker's file `{self.location.path}` was moved, removed or replaced while it was open: "
            "put it back, or restart what uses it"
        )

    def _patiently(self, step: Callable[[], T]) -> T:
        return patiently(step, self.location.busy_timeout)
