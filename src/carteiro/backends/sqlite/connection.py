"""Opening the file: the settings of each connection, and the schema brought to this version."""

from __future__ import annotations

import os
import sqlite3
from typing import Final
from urllib.parse import parse_qsl

import msgspec

from carteiro.backends.sqlite.statements import migrations
from carteiro.errors import BrokerError, BrokerUnavailable, ConfigurationError

_OLDEST: Final = (3, 38, 0)
_BUSY_TIMEOUT: Final = 10.0


class Location(msgspec.Struct, frozen=True):
    """What a `sqlite://` URL says. `busy_timeout` is in seconds."""

    path: str
    synchronous: str = "full"
    busy_timeout: float = _BUSY_TIMEOUT


def parse(url: str) -> Location:
    """`sqlite:///relative.db`, `sqlite:////absolute.db`. Raises ConfigurationError for what it does not know."""
    address, _, query = url.partition("?")
    path = address.partition("://")[2]
    if not path.startswith("/") or len(path) == 1:
        raise ConfigurationError(f"`{url}` names no file: write sqlite:///file.db, or sqlite:////var/lib/file.db")
    path = path[1:]
    if path == ":memory:":
        raise ConfigurationError(f"`{url}` would be each connection's own: use memory:// for a broker without a file")
    options = dict(parse_qsl(query, keep_blank_values=True))
    synchronous = options.pop("synchronous", "full")
    if synchronous not in ("full", "normal"):
        raise ConfigurationError(f"`{url}`: synchronous is `full` or `normal`, not `{synchronous}`")
    text = options.pop("busy_timeout", str(_BUSY_TIMEOUT))
    try:
        busy_timeout = float(text)
    except ValueError:
        raise ConfigurationError(f"`{url}`: busy_timeout is a number of seconds, not `{text}`") from None
    if options:
        raise ConfigurationError(
            f"`{url}`: unknown option `{next(iter(options))}`; there are synchronous, busy_timeout"
        )
    return Location(path, synchronous, busy_timeout)


def open_writer(location: Location) -> sqlite3.Connection:
    """The connection that changes the file, on its schema. Raises sqlite3.Error, also when locked, and BrokerError."""
    folder = os.path.dirname(os.path.abspath(location.path))
    if not os.path.isdir(folder):
        raise BrokerUnavailable(f"the broker's file `{location.path}` needs the directory `{folder}`: create it")
    if sqlite3.sqlite_version_info < _OLDEST:
        raise BrokerError(
            f"SQLite {sqlite3.sqlite_version} is too old: carteiro needs {'.'.join(map(str, _OLDEST))} or newer, "
            "which comes with a newer Python or system"
        )
    connection = sqlite3.connect(location.path, timeout=0, isolation_level=None, cached_statements=256)
    try:
        # A new file gets its shape before its first table; on an old one these two change nothing.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {location.synchronous}")
        # 8 MB of cache and 16 MB between checkpoints: more made nothing faster, less cost a tenth.
        connection.execute("PRAGMA cache_size = -8000")
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        # Off as SQLite itself has it; Debian's fills what is deleted with zeros, which costs a tenth.
        connection.execute("PRAGMA secure_delete = OFF")
        migrate(connection, location.path)
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(location: Location) -> sqlite3.Connection:
    """A connection that only looks, for what may take long. Closes, like any, with `close`."""
    connection = sqlite3.connect(location.path, timeout=location.busy_timeout, isolation_level=None)
    connection.execute("PRAGMA query_only = ON")
    return connection


def schema_version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Apply what the file lacks, all in one transaction: of several processes that open it at once, one does."""
    known = migrations()
    if schema_version(connection) == len(known):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = schema_version(connection)
        if version > len(known):
            raise BrokerError(
                f"the broker's file `{path}` was written by a newer carteiro (schema {version}, this one knows "
                f"{len(known)}): upgrade carteiro, or use another file"
            )
        for script in known[version:]:
            for statement in _statements(script):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(known)}")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _statements(script: str) -> list[str]:
    """Cut a script at its statements' ends: `executescript` would commit the transaction it is in."""
    statements, rest = [], ""
    for line in script.splitlines(keepends=True):
        rest += line
        if sqlite3.complete_statement(rest):
            statements.append(rest)
            rest = ""
    return statements
