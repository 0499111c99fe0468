"""From SQLite's errors to ours: one line that names the file, the cause and the way out."""

from __future__ import annotations

import sqlite3

from carteiro.errors import BrokerCorrupted, BrokerError, BrokerUnavailable

_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_CAUSES: dict[int, tuple[type[BrokerError], str]] = {
    sqlite3.SQLITE_BUSY: (
        BrokerUnavailable,
        "is locked by another process: end what holds it open for long, or raise `?busy_timeout=` (seconds)",
    ),
    sqlite3.SQLITE_READONLY: (
        BrokerUnavailable,
        "cannot be written: make the file and its directory writable for this user",
    ),
    sqlite3.SQLITE_PERM: (BrokerUnavailable, "may not be opened: make the file accessible for this user"),
    sqlite3.SQLITE_FULL: (BrokerUnavailable, "has no room left: the disk is full, free some space"),
    sqlite3.SQLITE_IOERR: (
        BrokerUnavailable,
        "cannot be read or written: look at the disk, its free space and its quota",
    ),
    sqlite3.SQLITE_CANTOPEN: (
        BrokerUnavailable,
        "cannot be opened: see that its directory exists and is writable for this user",
    ),
    sqlite3.SQLITE_CORRUPT: (
        BrokerCorrupted,
        "is corrupted: restore a backup, or save what can be read with `sqlite3 FILE .recover`",
    ),
    sqlite3.SQLITE_NOTADB: (BrokerCorrupted, "is no SQLite database: point the URL at another file"),
    sqlite3.SQLITE_TOOBIG: (BrokerError, "cannot take a body this large: SQLite's limit is 1 GB"),
}
_CAUSES[sqlite3.SQLITE_LOCKED] = _CAUSES[sqlite3.SQLITE_PROTOCOL] = _CAUSES[sqlite3.SQLITE_BUSY]


def _code(error: sqlite3.Error) -> int:
    """The primary code; an extended one holds it in its lowest byte."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def is_busy(error: sqlite3.Error) -> bool:
    return _code(error) in _BUSY


def explain(error: BaseException, path: str) -> BaseException:
    """`error` as its caller should see it. What is not SQLite's passes as it is."""
    if not isinstance(error, sqlite3.Error):
        return error
    kind, text = _CAUSES.get(_code(error), (BrokerError, "failed"))
    explained = kind(f"the broker's file `{path}` {text} ({error})")
    explained.__cause__ = error
    return explained
