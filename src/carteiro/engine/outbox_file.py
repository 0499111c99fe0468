"""The file of the outbox: what an app published while a broker was away, in the order of its ids.

SQLite gives an id to each message within the transaction that keeps it, and one writes at a time; so the order of the
ids is that of the commits, among all processes that share the file. A commit is on the disk (WAL, synchronous=FULL).
Each is kept for a broker, by what identifies it: the name that an app gives it may be another one's tomorrow.
One process at a time forwards what waits for a broker: the one whose name stands in `forwarders`, put there by
compare-and-set, with a term that it renews. A process that dies leaves its name, and the term ends by itself. A name is
taken out in the transaction that finds nothing left to forward: whoever keeps a message after that finds none there.

Whether something waits is read before each publish, on the event loop: 8 µs, and in WAL mode readers wait for nobody.
All that writes runs in one thread, one transaction after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import msgspec

from carteiro.errors import BrokerCorrupted, BrokerError, BrokerUnavailable
from carteiro.ports.clock import Clock

log = logging.getLogger("carteiro.outbox")

T = TypeVar("T")

TERM: Final = 10.0
"""Seconds for which a process that says nothing more still is the one that forwards."""
AT_ONCE: Final = 1000
"""Messages, and bytes of them, that are forwarded in one batch; it is one message at least."""
BYTES_AT_ONCE: Final = 8 * 1024 * 1024

_BUSY_TIMEOUT: Final = 10.0  # seconds that another process may hold the file's lock; a batch takes some milliseconds
_VACUUM_PAGES: Final = 2000  # of 4 KB
_VERSION: Final = 1
_SCHEMA: Final = (
    """
    CREATE TABLE IF NOT EXISTS messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        broker TEXT NOT NULL,
        kept_at REAL NOT NULL,  -- seconds since the epoch
        record BLOB NOT NULL,  -- as ports/records.py has it; its time is when the message is due
        dedupe REAL,
        target BLOB,
        refused TEXT  -- why the broker does not take it; NULL while it waits
    )""",
    "CREATE INDEX IF NOT EXISTS waiting ON messages (broker, id) WHERE refused IS NULL",
    "CREATE INDEX IF NOT EXISTS refused ON messages (broker) WHERE refused IS NOT NULL",
    "CREATE TABLE IF NOT EXISTS forwarders (broker TEXT PRIMARY KEY, name TEXT NOT NULL, until REAL NOT NULL)",
    f"PRAGMA user_version = {_VERSION}",
)
_KEEP: Final = "INSERT INTO messages (broker, kept_at, record, dedupe, target) VALUES (?, ?, ?, ?, ?)"
_WAITS: Final = "SELECT EXISTS (SELECT 1 FROM messages WHERE broker = ? AND refused IS NULL)"
_NEXT: Final = (
    "SELECT id, record, dedupe, target FROM messages WHERE broker = ? AND refused IS NULL ORDER BY id LIMIT ?"
)
_DROP: Final = "DELETE FROM messages WHERE id IN (SELECT value FROM json_each(?))"
_REFUSE: Final = "UPDATE messages SET refused = ? WHERE id = ?"
_RETRY: Final = "UPDATE messages SET refused = NULL WHERE broker = ? AND refused IS NOT NULL"
_STATUS: Final = """
    SELECT (SELECT count(*) FROM messages WHERE broker = :broker AND refused IS NULL),
        (SELECT kept_at FROM messages WHERE broker = :broker AND refused IS NULL ORDER BY id LIMIT 1),
        (SELECT count(*) FROM messages WHERE broker = :broker AND refused IS NOT NULL),
        (SELECT count(*) FROM messages WHERE refused IS NULL AND broker IN (SELECT value FROM json_each(:strays)))
        + (SELECT count(*) FROM messages WHERE refused IS NOT NULL AND broker IN (SELECT value FROM json_each(:strays)))
"""
# A term that ends later than any does was written before the clock went back. Twice a term: `now` is of when the claim
# was asked for, and another process may have claimed since.
_CLAIM: Final = (
    "INSERT INTO forwarders VALUES (:broker, :name, :until) ON CONFLICT DO UPDATE SET name = :name, until = :until "
    f"WHERE name = :name OR until <= :now OR until > :now + {2 * TERM}"
)
_STRAY: Final = (
    "SELECT broker, count(*) FROM messages WHERE broker NOT IN (SELECT value FROM json_each(?)) GROUP BY broker"
)
_YIELD: Final = "DELETE FROM forwarders WHERE broker = ? AND name = ?"
_YIELD_IF_NONE_WAITS: Final = (
    f"{_YIELD} AND NOT EXISTS (SELECT 1 FROM messages AS m WHERE m.broker = forwarders.broker AND m.refused IS NULL)"
)


class Kept(msgspec.Struct, frozen=True):
    """A message in the file. `target` is the object that it goes to in place of a topic, if any, as bytes."""

    record: bytes
    dedupe: float | None = None
    target: bytes | None = None
    id: int = 0


class OutboxStatus(msgspec.Struct, frozen=True):
    """What an outbox holds for one broker."""

    waiting: int
    oldest: float | None
    """The age in seconds of the oldest message that waits."""
    refused: int
    """Messages that the broker did not take: they stay, and are tried again when the next process starts."""
    stray: int = 0
    """What the same file had for brokers that the app does not have when it was opened, and is still there."""


class OutboxFile:
    """Open from `open` to `close`, which count: the brokers of an app share it. Used from one event loop.

    Raises BrokerUnavailable where the file cannot be read or written, as on a full disk, and BrokerCorrupted where it
    is no longer one of ours. Each names it and the way out.
    """

    def __init__(self, path: str, clock: Clock) -> None:
        self.path = path
        self.brokers: set[str] = set()
        """Those of the app that opens it, by what identifies them."""
        self._strays: list[str] = []
        """Those of which it had messages then, and which the app does not have."""
        self._clock = clock
        self._users = 0
        self._writer: sqlite3.Connection
        self._reader: sqlite3.Connection
        self._thread: ThreadPoolExecutor
        self._file: os.stat_result

    async def open(self) -> None:
        if not self._users:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="carteiro outbox")
            try:
                strays = await self._run(self._open)
                self._reader = _connect(self.path)
            except BaseException:
                self._thread.shutdown(wait=False)
                raise
            self._strays = [broker for broker, _ in strays]
            for broker, count in strays:
                log.warning(
                    "%d messages in the outbox `%s` are for the broker `%s`, which this app does not have: they stay "
                    "there until an app that has it opens the file", count, self.path, broker,
                )  # fmt: skip
        self._users += 1

    async def close(self) -> None:
        self._users -= 1
        if not self._users:
            self._reader.close()
            await self._run(self._writer.close)
            self._thread.shutdown(wait=False)

    # -- what waits ------------------------------------------------------------------------------------------------

    def waits(self, broker: str) -> bool:
        """Whether something waits for this broker, whoever kept it."""
        return bool(self._explained(lambda: self._reader.execute(_WAITS, (broker,)).fetchone()[0]))

    async def keep(self, broker: str, messages: Sequence[Kept]) -> None:
        """Returns when all are on the disk, behind whatever was there; where it raises, none is."""
        now = self._clock.time()
        rows = [(broker, now, one.record, one.dedupe, one.target) for one in messages]

        def work() -> None:
            self._check_in_place()
            with self._transaction() as writer:
                writer.executemany(_KEEP, rows)

        await self._run(work)

    async def next(self, broker: str) -> list[Kept]:
        """The first ones that wait: up to AT_ONCE of them, and about BYTES_AT_ONCE."""

        def work() -> list[Kept]:
            found: list[Kept] = []
            size = 0
            with contextlib.closing(self._writer.execute(_NEXT, (broker, AT_ONCE))) as rows:
                for id, record, dedupe, target in rows:
                    found.append(Kept(record, dedupe, target, id))
                    size += len(record)
                    if size >= BYTES_AT_ONCE:
                        break
            return found

        return await self._run(work)

    async def drop(self, ids: Sequence[int]) -> None:
        """Forget them: the broker has them."""
        await self._change(_DROP, _listed(ids))

    async def refuse(self, id: int, reason: str) -> None:
        """Set one aside, which the broker does not take."""
        await self._change(_REFUSE, reason, id)

    async def retry_refused(self, broker: str) -> int:
        """Have those wait again that were set aside; returns how many."""
        return await self._change(_RETRY, broker)

    async def status(self, broker: str) -> OutboxStatus:
        asked = {"broker": broker, "strays": _listed(self._strays)}
        waiting, since, refused, stray = await self._run(lambda: self._writer.execute(_STATUS, asked).fetchone())
        oldest = None if since is None else max(0.0, self._clock.time() - since)
        return OutboxStatus(waiting, oldest, refused, stray)

    # -- who forwards ----------------------------------------------------------------------------------------------

    async def claim(self, broker: str, name: str) -> bool:
        """Be the one that forwards for a new term; False if another one is."""
        now = self._clock.time()
        claim = {"broker": broker, "name": name, "now": now, "until": now + TERM}
        return bool(await self._change(_CLAIM, **claim))

    async def yield_if_none_waits(self, broker: str, name: str) -> bool:
        """No more be the one that forwards, if there is nothing to forward; returns whether that is so."""
        return bool(await self._change(_YIELD_IF_NONE_WAITS, broker, name))

    async def shrink(self) -> None:
        """Give back to the disk what an outage has filled, a part at a time."""

        def free() -> int:
            pages: int = self._writer.execute("PRAGMA freelist_count").fetchone()[0]
            return pages

        def some() -> bool:
            before = free()
            # As a script, for it is a step a page, and `execute` takes only one of a statement without columns.
            self._writer.executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")
            return 0 < free() < before

        while await self._run(some):
            pass
        await self._run(lambda: self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())

    async def yield_(self, broker: str, name: str) -> None:
        """No more be the one that forwards, so that another process may begin at once."""
        await self._change(_YIELD, broker, name)

    # -- how -------------------------------------------------------------------------------------------------------

    def _open(self) -> list[tuple[str, int]]:
        """Returns how many messages it has for brokers that the app does not have."""
        folder = os.path.dirname(os.path.abspath(self.path))
        if not os.path.isdir(folder):
            raise BrokerUnavailable(f"the outbox `{self.path}` needs the directory `{folder}`: create it")
        self._writer = _connect(self.path)
        try:
            self._writer.execute("PRAGMA auto_vacuum = INCREMENTAL")  # for a new file: an old one keeps what it has
            self._writer.execute("PRAGMA journal_mode = WAL")
            self._writer.execute("PRAGMA synchronous = FULL")
            self._writer.execute("PRAGMA journal_size_limit = 67108864")
            with self._transaction() as writer:
                (version,) = writer.execute("PRAGMA user_version").fetchone()
                if version > _VERSION:
                    raise BrokerError(f"the outbox `{self.path}` was written by a newer carteiro: upgrade, or move it")
                for statement in _SCHEMA:
                    writer.execute(statement)
            self._file = os.stat(self.path)
            return self._writer.execute(_STRAY, (_listed(self.brokers),)).fetchall()
        except BaseException:
            self._writer.close()
            raise

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            yield self._writer
            self._writer.execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:  # when the disk is full, SQLite has rolled back by itself
                self._writer.execute("ROLLBACK")
            raise

    def _check_in_place(self) -> None:
        """What is written to a file that others do not find under its name any more is lost."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(self.path), self._file):
                return
        raise BrokerUnavailable(
            f"the outbox `{self.path}` was moved, removed or replaced while it was open: put it back, or restart what "
            "uses it"
        )

    async def _change(self, statement: str, *values: object, **named: object) -> int:
        """Run it in a transaction of its own; returns how many rows it changed."""
        return await self._run(lambda: self._writer.execute(statement, named or values).rowcount)

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            done = asyncio.get_running_loop().run_in_executor(self._thread, self._explained, work)
        except RuntimeError:  # the interpreter is ending, and its threads have ended
            return self._explained(work)
        return await done

    def _explained(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise BrokerCorrupted(
                    f"the outbox `{self.path}` cannot be read ({error}): move it away, and save what can be read with "
                    "`sqlite3 FILE .recover`"
                ) from error
            if self._users:
                self._check_in_place()
            raise BrokerUnavailable(
                f"the outbox `{self.path}` cannot be used ({error}): see that its disk has room, that this user may "
                "write it and its directory, and that nothing holds it locked"
            ) from error


def _connect(path: str) -> sqlite3.Connection:
    # The interpreter's own check of the thread would not let a thread that is gone be followed by another one.
    return sqlite3.connect(path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)


def _listed(values: Iterable[int | str]) -> str:
    """For `json_each`."""
    return msgspec.json.encode(list(values)).decode()
