"""What the file can suffer: a lock, a full disk, damage, another version; and that it holds no more than it must."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from carteiro.backends.sqlite import SqliteBackend, doctor, open_backend
from carteiro.backends.sqlite.connection import Location, open_writer, parse
from carteiro.backends.sqlite.database import Database
from carteiro.backends.sqlite.session import Session
from carteiro.backends.sqlite.statements import migrations
from carteiro.errors import BrokerCorrupted, BrokerError, BrokerUnavailable, ConfigurationError, NotConnected
from carteiro.message import NO_HEADERS, Action, Outcome, Outgoing, Subscription, new_id
from carteiro.ports.clock import SYSTEM_CLOCK
from carteiro.testing.clock import VirtualClock

ORDERS = Subscription("orders", "stock")


def order(body: bytes = b"1") -> Outgoing:
    id = new_id()
    return Outgoing(id, "orders", body, None, NO_HEADERS, id)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "broker.db"


def backend_at(path: Path, options: str = "") -> SqliteBackend:
    return open_backend(f"sqlite:///{path}{options}", clock=SYSTEM_CLOCK)


@contextlib.asynccontextmanager
async def connected(path: Path, options: str = "") -> AsyncIterator[SqliteBackend]:
    backend = backend_at(path, options)
    await backend.broker.connect()
    await backend.broker.declare([ORDERS])
    try:
        yield backend
    finally:
        await backend.broker.close()


def database_of(backend: SqliteBackend) -> Database:
    return backend.broker._database


async def run_pragma(backend: SqliteBackend, pragma: str) -> None:
    def run(session: Session) -> None:
        session.connection.execute(f"PRAGMA {pragma}").fetchall()

    await database_of(backend).read(run)


def damage(path: Path) -> None:
    """The first page of what waits."""
    with contextlib.closing(sqlite3.connect(path)) as file:
        (page,) = file.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'deliveries'").fetchone()
    with path.open("r+b") as raw:
        raw.seek((page - 1) * 4096)
        raw.write(os.urandom(4096))


def overwrite(path: Path) -> None:
    path.write_bytes(b"this is no database of any kind. " * 100)


def size_of(path: Path) -> int:
    return path.stat().st_size


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


class TestUrl:
    def test_a_relative_and_an_absolute_path(self) -> None:
        assert parse("sqlite:///shop.db").path == "shop.db"
        assert parse("sqlite:////var/lib/shop.db").path == "/var/lib/shop.db"

    def test_its_options(self) -> None:
        location = parse("sqlite:///shop.db?synchronous=normal&busy_timeout=0.5")
        assert (location.synchronous, location.busy_timeout) == ("normal", 0.5)

    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("sqlite:///:memory:", "memory://"),
            ("sqlite://", "names no file"),
            ("sqlite:///a.db?synchronous=off", "`full` or `normal`"),
            ("sqlite:///a.db?busy_timeout=soon", "number of seconds"),
            ("sqlite:///a.db?cache=shared", "unknown option `cache`"),
        ],
    )
    def test_what_it_does_not_understand_is_a_clear_error(self, url: str, said: str) -> None:
        with pytest.raises(ConfigurationError, match=said):
            open_backend(url, clock=SYSTEM_CLOCK)


class TestMishaps:
    async def test_a_missing_directory_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(BrokerUnavailable, match=r"nowhere.*create it"):
            await backend_at(tmp_path / "nowhere" / "broker.db").broker.connect()

    async def test_a_file_that_is_no_database_is_corrupted(self, path: Path) -> None:
        overwrite(path)
        with pytest.raises(BrokerCorrupted, match=r"broker\.db"):
            await backend_at(path).broker.connect()

    async def test_a_damaged_page_is_corrupted(self, path: Path) -> None:
        async with connected(path) as backend:
            await backend.broker.publish([order(b"x" * 50_000) for _ in range(20)])
        damage(path)

        broker = backend_at(path).broker
        await broker.connect()
        with pytest.raises(BrokerCorrupted, match="restore a backup"):
            await broker.publish([order()])
        await broker.close()

    async def test_a_newer_schema_is_refused_and_left_alone(self, path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as file:
            file.execute("PRAGMA user_version = 99")

        with pytest.raises(BrokerError, match=r"newer carteiro \(schema 99.*upgrade"):
            await backend_at(path).broker.connect()
        with contextlib.closing(sqlite3.connect(path)) as file:
            assert file.execute("PRAGMA user_version").fetchone() == (99,)

    async def test_a_lock_that_lasts_is_an_error_and_what_was_safe_stays(self, path: Path) -> None:
        async with connected(path, "?busy_timeout=0.05") as backend:
            safe = order()
            await backend.broker.publish([safe])
            with locked(path), pytest.raises(BrokerUnavailable, match="locked by another process"):
                await backend.broker.publish([order()])

            assert [message.id for message in await backend.broker.peek("orders", "stock")] == [safe.id]

    async def test_a_lock_that_ends_is_waited_for(self, path: Path) -> None:
        async with connected(path) as backend:
            with locked(path):
                publishing = asyncio.ensure_future(backend.broker.publish([order()]))
                # A look from beside the thread goes through while the lock is held.
                assert await backend.broker.peek("orders", "stock") == []
            await publishing
            assert len(await backend.broker.peek("orders", "stock")) == 1

    async def test_a_read_only_file_is_an_error_and_the_broker_recovers(self, path: Path) -> None:
        async with connected(path) as backend:
            await run_pragma(backend, "query_only = ON")
            with pytest.raises(BrokerUnavailable, match=r"cannot be written.*writable"):
                await backend.broker.publish([order()])

            await run_pragma(backend, "query_only = OFF")
            assert await backend.broker.publish([order()]) == []

    async def test_a_full_disk_fails_the_publish_whole_and_keeps_the_rest(self, path: Path) -> None:
        async with connected(path) as backend:
            safe = order()
            await backend.broker.publish([safe])
            await run_pragma(backend, "max_page_count = 60")
            with pytest.raises(BrokerUnavailable, match="disk is full"):
                await backend.broker.publish([order(b"x" * 100_000) for _ in range(10)])

            await run_pragma(backend, "max_page_count = 1000000")
            assert [message.id for message in await backend.broker.peek("orders", "stock")] == [safe.id]
            consumer = backend.broker.consume([ORDERS])
            (delivery,) = await consumer.fetch({ORDERS: 10})
            assert await consumer.settle([Outcome(delivery, Action.ACK)]) == []

    async def test_a_request_that_fails_takes_none_of_its_commit_with_it(self, path: Path) -> None:
        async with connected(path) as backend:
            good, bad, also_good = await asyncio.gather(
                backend.broker.publish([order()]),
                backend.broker.rewind("orders", "stock", 0),
                backend.broker.publish([order()]),
                return_exceptions=True,
            )
            assert (good, also_good) == ([], [])
            assert isinstance(bad, BrokerError)
            assert "retain" in str(bad)
            assert len(await backend.broker.peek("orders", "stock")) == 2

    async def test_before_connect_and_after_close_it_says_so(self, path: Path) -> None:
        backend = backend_at(path)
        with pytest.raises(NotConnected, match="connect first"):
            await backend.broker.publish([order()])
        await backend.broker.connect()
        await backend.broker.close()
        with pytest.raises(NotConnected):
            await backend.broker.publish([order()])

    async def test_a_waiting_fetch_ends_when_the_broker_closes(self, path: Path) -> None:
        async with connected(path) as backend:
            consumer = backend.broker.consume([ORDERS])
            fetching = asyncio.ensure_future(consumer.fetch({ORDERS: 1}))
            await backend.broker.publish([])
        with pytest.raises(NotConnected):
            await fetching


class TestSchema:
    async def test_it_carries_its_version(self, path: Path) -> None:
        async with connected(path):
            pass
        with contextlib.closing(sqlite3.connect(path)) as file:
            assert file.execute("PRAGMA user_version").fetchone() == (len(migrations()),)
            assert file.execute("PRAGMA journal_mode").fetchone() == ("wal",)

    async def test_several_that_open_a_new_file_at_once_make_one_schema(self, path: Path) -> None:
        backends = [backend_at(path) for _ in range(8)]
        await asyncio.gather(*(backend.broker.connect() for backend in backends))
        await asyncio.gather(*(backend.broker.declare([ORDERS]) for backend in backends))
        assert len(await backends[0].broker.groups()) == 1
        await asyncio.gather(*(backend.broker.close() for backend in backends))

    async def test_a_closed_broker_leaves_one_file_and_opens_again(self, path: Path) -> None:
        backend = backend_at(path)
        for _ in range(2):
            await backend.broker.connect()
            await backend.broker.declare([ORDERS])
            await backend.broker.publish([order()])
            await backend.broker.close()
        assert [file.name for file in path.parent.iterdir()] == [path.name]
        async with connected(path) as again:
            assert len(await again.broker.peek("orders", "stock")) == 2


class TestSize:
    async def test_the_file_does_not_grow_with_what_has_passed(self, path: Path) -> None:
        sizes = []
        async with connected(path) as backend:
            consumer = backend.broker.consume([ORDERS])
            for _ in range(6):
                await backend.broker.publish([order(b"x" * 1_000) for _ in range(1_000)])
                done = 0
                while done < 1_000:
                    deliveries = await consumer.fetch({ORDERS: 500})
                    assert await consumer.settle([Outcome(one, Action.ACK) for one in deliveries]) == []
                    done += len(deliveries)
                await run_pragma(backend, "wal_checkpoint(TRUNCATE)")
                sizes.append(size_of(path))
        assert sizes[-1] <= sizes[0] * 1.1

    async def test_it_shrinks_after_a_flood(self, path: Path) -> None:
        clock = VirtualClock()
        backend = open_backend(f"sqlite:///{path}", clock=clock)
        await backend.broker.connect()
        await backend.broker.declare([ORDERS])
        await backend.broker.publish([order(b"x" * 100_000) for _ in range(200)])
        await run_pragma(backend, "wal_checkpoint(TRUNCATE)")
        flooded = size_of(path)
        await backend.broker.purge("orders", "stock")
        for _ in range(6):
            clock.advance_to(clock.time() + 11)
            await backend.broker.publish([order()])
        await run_pragma(backend, "wal_checkpoint(TRUNCATE)")
        assert size_of(path) < flooded / 2
        await backend.broker.close()

    async def test_what_expired_is_cleared(self, path: Path) -> None:
        clock = VirtualClock()
        backend = open_backend(f"sqlite:///{path}", clock=clock)
        await backend.broker.connect()
        await backend.broker.declare([ORDERS])
        id = new_id()
        await backend.broker.publish([Outgoing(id, "orders", b"1", None, NO_HEADERS, id, dedupe=60)])
        clock.advance_to(clock.time() + 61)
        await backend.broker.publish([])
        count = await database_of(backend).read(
            lambda session: session.connection.execute("SELECT count(*) FROM marks").fetchone()[0]
        )
        assert count == 0
        await backend.broker.close()


class TestDoctor:
    async def test_a_healthy_file(self, path: Path) -> None:
        checks = {check.name: check for check in await backend_at(path).doctor()}
        assert {name for name, check in checks.items() if check.status == "error"} == set()
        assert {"reachable", "version", "schema", "journal", "durability", "integrity", "size", "disk"} == set(checks)

    async def test_it_waits_for_a_lock_that_ends(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        tried = threading.Event()

        def try_and_tell(location: Location) -> sqlite3.Connection:
            try:
                return open_writer(location)
            finally:
                tried.set()

        monkeypatch.setattr(doctor, "open_writer", try_and_tell)
        looking = asyncio.ensure_future(backend_at(path).doctor())
        await asyncio.to_thread(tried.wait)
        holder.execute("ROLLBACK")
        holder.close()

        assert [check.name for check in await looking if check.status == "error"] == []

    async def test_it_warns_of_less_than_full_sync(self, path: Path) -> None:
        checks = {check.name: check for check in await backend_at(path, "?synchronous=normal").doctor()}
        assert checks["durability"].status == "warning"

    async def test_a_file_that_is_no_database(self, path: Path) -> None:
        overwrite(path)
        (check,) = await backend_at(path).doctor()
        assert (check.name, check.status) == ("reachable", "error")
        assert "no SQLite database" in check.detail
