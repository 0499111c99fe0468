"""The SQLite of the bare loop: what one would write by hand to get the same guarantees, and no more.

One table, WAL, `synchronous=FULL`. A claim leases a batch by moving `visible_at` and adding one to `attempt`, which is
the fence: settling and renewing act only where it still stands. All that carteiro keeps with a message is kept, too.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import msgspec

from benchmarks.contestants.bare import LEASE, Held, Settled
from benchmarks.contestants.orders import BODY, TOPIC, broker, filling
from benchmarks.contestants.publishing import Publisher
from carteiro.message import NO_HEADERS, Message

BATCH = 500

_SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY, visible_at REAL NOT NULL, attempt INTEGER NOT NULL DEFAULT 0, published REAL NOT NULL,
    message_id TEXT NOT NULL, topic TEXT NOT NULL, key TEXT, headers TEXT, correlation_id TEXT, body BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS messages_visible ON messages (visible_at);
CREATE TABLE IF NOT EXISTS dead (
    message_id TEXT NOT NULL, topic TEXT NOT NULL, reason TEXT NOT NULL, body BLOB NOT NULL);
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
_ACK = "DELETE FROM messages WHERE attempt = ? AND id IN (SELECT value FROM json_each(?))"
_headers = msgspec.json.Decoder(dict[str, str]).decode


class BareFile:
    """One connection. Its calls block: with a thread for the file, and a batch claimed ahead, the loop was slower (two
    threads hand one interpreter lock to and fro)."""

    def __init__(self, url: str, *, synchronous: str = "FULL") -> None:
        path = url.removeprefix("sqlite:///")
        self._connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
        self._numbers = itertools.count()
        run = self._connection.execute
        run("PRAGMA journal_mode = WAL")
        run(f"PRAGMA synchronous = {synchronous}")
        run("PRAGMA cache_size = -8000")
        run("PRAGMA wal_autocheckpoint = 4000")

    def create(self) -> None:
        self._connection.executescript(_SCHEMA)

    def publish(self, count: int) -> None:
        """So many orders in one transaction."""
        now = time.time()
        rows = [(now, now, f"bare-{number:x}", TOPIC, BODY) for number in itertools.islice(self._numbers, count)]
        with self._transaction():
            self._connection.executemany(_INSERT, rows)

    async def turn(self, settled: Settled, room: int = BATCH) -> Sequence[Any]:
        """Settle one batch and claim the next in one commit."""
        now = time.time()
        with self._transaction():
            self._settle(settled, now)
            return self._connection.execute(_CLAIM, (now + LEASE, now, room)).fetchall()

    def held(self, row: Any) -> Held:
        return row[0], row[1]

    def message(self, row: Any) -> Message:
        _, attempt, published, id, topic, key, headers, correlation_id, body = row
        return Message(
            id, topic, body, key, _headers(headers) if headers else NO_HEADERS, correlation_id or id, published, attempt
        )

    async def renew(self, held: Sequence[Held]) -> None:
        until = time.time() + LEASE
        with self._transaction():
            self._connection.executemany(_MOVE, [(until, *one) for one in held])

    def close(self) -> None:
        self._connection.close()

    def _settle(self, settled: Settled, now: float) -> None:
        for attempt, rows in settled.by_attempt().items():
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


@asynccontextmanager
async def publishing() -> AsyncIterator[Publisher]:
    """One transaction a message, or one for all.

    A loop that goes on while a commit waits for the disk needs a thread for the file, here as in carteiro; `alone` does
    without.
    """
    file = BareFile(broker(), synchronous="OFF" if filling() else "FULL")
    file.create()
    run, thread = asyncio.get_running_loop().run_in_executor, ThreadPoolExecutor(1)

    async def many(count: int) -> None:
        file.publish(count)

    yield Publisher(lambda: run(thread, file.publish, 1), many, alone=lambda: file.publish(1))
    file.close()
