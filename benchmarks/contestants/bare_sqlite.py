"""The SQLite of the bare loop: what one would write by hand to get the same guarantees, and no more.

One table, WAL, `synchronous=FULL`. A claim leases a batch by moving `visible_at` and adding one to `attempt`, which is
the fence: settling and renewing act only where it still stands. All that carteiro keeps with a message is kept, too.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from benchmarks.contestants.orders import BODY, TOPIC

BATCH = 500
LEASE = 30.0
ATTEMPTS = 5

_SCHEMA = """
CREATE TABLE messages (
    id INTEGER PRIMARY KEY, visible_at REAL NOT NULL, attempt INTEGER NOT NULL DEFAULT 0, published REAL NOT NULL,
    message_id TEXT NOT NULL, topic TEXT NOT NULL, key TEXT, headers TEXT, correlation_id TEXT, body BLOB NOT NULL);
CREATE INDEX messages_visible ON messages (visible_at);
CREATE TABLE dead (message_id TEXT NOT NULL, topic TEXT NOT NULL, reason TEXT NOT NULL, body BLOB NOT NULL);
"""
_INSERT = "INSERT INTO messages (visible_at, published, message_id, topic, body) VALUES (?, ?, ?, ?, ?)"
_CLAIM = """
UPDATE messages SET visible_at = ?, attempt = attempt + 1
WHERE id IN (SELECT id FROM messages WHERE visible_at <= ? ORDER BY visible_at, id LIMIT ?)
RETURNING id, attempt, published, message_id, topic, key, headers, correlation_id, body
"""
_MOVE = "UPDATE messages SET visible_at = ? WHERE id = ? AND attempt = ?"
_BURY = "INSERT INTO dead SELECT message_id, topic, ?, body FROM messages WHERE id = ? AND attempt = ?"
_DELETE = "DELETE FROM messages WHERE id = ? AND attempt = ?"
# What each attempt has in common is said once: one statement for a batch, instead of one for a message.
_ACK = "DELETE FROM messages WHERE attempt = ? AND id IN (SELECT value FROM json_each(?))"

Held = tuple[int, int]
"""Row and attempt."""


class Settled(msgspec.Struct):
    """How a batch ended: acked, failed at so many seconds from now, dead with a reason."""

    acked: list[Held] = []
    retried: list[tuple[float, Held]] = []
    dead: list[tuple[str, Held]] = []


class BareFile:
    """One connection."""

    def __init__(self, path: str, *, synchronous: str = "FULL") -> None:
        self._connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
        run = self._connection.execute
        run("PRAGMA journal_mode = WAL")
        run(f"PRAGMA synchronous = {synchronous}")
        run("PRAGMA cache_size = -8000")
        run("PRAGMA wal_autocheckpoint = 4000")

    def create(self) -> None:
        self._connection.executescript(_SCHEMA)

    def publish(self, count: int, first: int = 0) -> None:
        """So many orders in one transaction."""
        now = time.time()
        rows = [(now, now, f"bare-{number:x}", TOPIC, BODY) for number in range(first, first + count)]
        with self._transaction():
            self._connection.executemany(_INSERT, rows)

    def turn(self, settled: Settled, room: int = BATCH) -> Sequence[Any]:
        """Settle one batch and claim the next in one commit."""
        now = time.time()
        with self._transaction():
            self._settle(settled, now)
            return self._connection.execute(_CLAIM, (now + LEASE, now, room)).fetchall()

    def renew(self, held: Sequence[Held]) -> None:
        until = time.time() + LEASE
        with self._transaction():
            self._connection.executemany(_MOVE, [(until, *one) for one in held])

    def close(self) -> None:
        self._connection.close()

    def _settle(self, settled: Settled, now: float) -> None:
        by_attempt: dict[int, list[int]] = {}
        for row, attempt in settled.acked:
            by_attempt.setdefault(attempt, []).append(row)
        for attempt, rows in by_attempt.items():
            self._connection.execute(_ACK, (attempt, msgspec.json.encode(rows).decode()))
        for delay, held in settled.retried:
            self._connection.execute(_MOVE, (now + delay, *held))
        for reason, held in settled.dead:
            self._connection.execute(_BURY, (reason, *held))
            self._connection.execute(_DELETE, held)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


def fill(path: str, messages: int) -> None:
    """A new file with so many orders waiting."""
    file = BareFile(path, synchronous="OFF")
    file.create()
    for start in range(0, messages, 5000):
        file.publish(min(5000, messages - start), start)
    file.close()
