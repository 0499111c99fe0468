"""A look at the file's health. It opens the file as a broker would, so a file that is not there yet is made."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Sequence
from typing import Final

from carteiro.backends.sqlite.connection import Location, open_reader, open_writer, schema_version
from carteiro.backends.sqlite.mishaps import explain
from carteiro.backends.sqlite.patience import patiently
from carteiro.backends.sqlite.statements import migrations
from carteiro.errors import BrokerError
from carteiro.ports.broker import Check

_LITTLE_SPACE: Final = 512 * 1024 * 1024  # bytes


def examine(location: Location) -> Sequence[Check]:
    """Blocking: it reads the whole file."""
    try:
        patiently(lambda: open_writer(location), location.busy_timeout).close()
        with contextlib.closing(open_reader(location)) as connection:
            return [
                Check("reachable", "ok", f"`{location.path}` can be read and written"),
                Check("version", "ok", f"SQLite {sqlite3.sqlite_version}"),
                _schema(connection),
                _journal(connection),
                _synchronous(location),
                _integrity(connection),
                _size(location),
                _space(location),
            ]
    except (sqlite3.Error, BrokerError) as error:
        return [Check("reachable", "error", str(explain(error, location.path)))]


def _schema(connection: sqlite3.Connection) -> Check:
    return Check("schema", "ok", f"version {schema_version(connection)} of {len(migrations())}")


def _journal(connection: sqlite3.Connection) -> Check:
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    if mode == "wal":
        return Check("journal", "ok", "write-ahead log")
    return Check("journal", "error", f"journal mode is `{mode}`, not WAL: keep the file on a local disk")


def _synchronous(location: Location) -> Check:
    if location.synchronous == "full":
        return Check("durability", "ok", "synchronous=FULL: what is acknowledged outlives a power cut")
    return Check(
        "durability",
        "warning",
        "synchronous=NORMAL: a power cut can take the last commits; leave out `?synchronous=normal` where that matters",
    )


def _integrity(connection: sqlite3.Connection) -> Check:
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found == "ok":
        return Check("integrity", "ok", "quick_check found nothing")
    return Check("integrity", "error", f"{found}: restore a backup, or save what can be read with `.recover`")


def _size(location: Location) -> Check:
    sizes = [os.path.getsize(name) for name in (location.path, f"{location.path}-wal") if os.path.exists(name)]
    return Check("size", "ok", " + ".join(f"{size / 1_048_576:,.1f} MB" for size in sizes) + " (file + log)")


def _space(location: Location) -> Check:
    free = shutil.disk_usage(os.path.dirname(os.path.abspath(location.path))).free
    detail = f"{free / 1_048_576:,.0f} MB free on the disk"
    return Check("disk", "ok" if free > _LITTLE_SPACE else "warning", detail)
