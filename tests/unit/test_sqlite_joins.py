"""What sets and waits cost on SQLite, what they leave in the file, and who waits when it is closed."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from carteiro.backends.sqlite import SqliteBackend, open_backend
from carteiro.backends.sqlite.connection import Location, open_writer
from carteiro.backends.sqlite.joins import make
from carteiro.backends.sqlite.session import Session
from carteiro.backends.sqlite.statements import migrations
from carteiro.backends.sqlite.waits import Wait, Waits
from carteiro.errors import NotConnected
from carteiro.message import NO_HEADERS, Action, Join, Outcome, Outgoing, Subscription, Write, new_id
from carteiro.testing.clock import VirtualClock

ORDERS = Subscription("orders", "stock")


def member(number: int, size: int, *, key: str = "set", ttl: float | None = None) -> Join:
    return Join(key, f"member-{number}", "actor", size, ttl=ttl)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "broker.db"


@pytest.fixture
async def backend(path: Path, clock: VirtualClock) -> AsyncIterator[SqliteBackend]:
    backend = open_backend(f"sqlite:///{path}", clock=clock)
    await backend.broker.connect()
    await backend.broker.declare([ORDERS])
    yield backend
    await backend.broker.close()


async def run(backend: SqliteBackend, sql: str) -> list[Any]:
    def look(session: Session) -> list[Any]:
        return session.connection.execute(sql).fetchall()

    return await backend.broker._database.read(look)


async def traced(backend: SqliteBackend, statements: list[str] | None) -> None:
    """Note what is executed from now on, or no more."""

    def trace(session: Session) -> None:
        session.connection.set_trace_callback(None if statements is None else statements.append)

    await backend.broker._database.read(trace)


class TestSets:
    async def test_a_batch_takes_the_same_few_statements_whatever_its_size_and_the_sets(
        self, path: Path, clock: VirtualClock
    ) -> None:
        session = Session(Location(str(path)), clock)
        counts = []
        for start, count in ((0, 1), (1, 10), (11, 1_000), (1_011, 8_000)):
            executed: list[str] = []
            session.begin()
            session.connection.set_trace_callback(executed.append)
            assert make(session, [member(number, 10_000) for number in range(start, start + count)]) == [False] * count
            session.connection.set_trace_callback(None)
            session.commit()
            counts.append(len([one for one in executed if not one.startswith("--")]))
        session.close()
        assert counts == [3, 4, 4, 4]

    async def test_the_file_grows_in_proportion_to_the_members(self, tmp_path: Path, clock: VirtualClock) -> None:
        grown = []
        for size in (1_000, 10_000):
            session = Session(Location(str(tmp_path / f"{size}.db")), clock)
            (before,) = session.connection.execute("PRAGMA page_count").fetchone()
            for start in range(0, size, 500):
                session.begin()
                make(session, [member(number, size + 1) for number in range(start, start + 500)])
                session.commit()
            (after,) = session.connection.execute("PRAGMA page_count").fetchone()
            session.close()
            grown.append((after - before) * 4096)
        assert grown[1] < 12 * grown[0]
        assert grown[1] < 20 * 10_000, "over 20 bytes a member"

    async def test_of_a_full_set_only_who_completed_it_is_kept(self, backend: SqliteBackend) -> None:
        await backend.store.join([member(number, 100) for number in range(99)])
        assert await run(backend, "SELECT count(*) FROM members") == [(99,)]

        assert await backend.store.join([member(99, 100)]) == [True]

        assert await run(backend, "SELECT count(*) FROM members") == [(0,)]
        assert await run(backend, "SELECT key, size, completed FROM joins") == [("set", 100, '["member-99","actor"]')]

    async def test_sets_that_have_expired_are_cleared_away_with_their_members(
        self, backend: SqliteBackend, clock: VirtualClock
    ) -> None:
        for start in range(0, 12_000, 4_000):
            await backend.store.join([member(number, 20_000, ttl=60) for number in range(start, start + 4_000)])
        await backend.store.join([member(1, 3, key="kept"), member(1, 1, key="full", ttl=60)])
        clock.advance_to(clock.time() + 61)
        async with asyncio.timeout(30):
            while await run(backend, "SELECT count(*) FROM members") != [(1,)]:
                clock.advance_to(clock.time() + 1)
                await backend.store.write([])
        while await run(backend, "SELECT key FROM joins") != [("kept",)]:
            clock.advance_to(clock.time() + 1)
            await backend.store.write([])
        assert await backend.store.join([member(2, 3, key="kept"), member(3, 3, key="kept")]) == [False, True]

    async def test_an_outcome_without_joins_executes_nothing_for_them(self, backend: SqliteBackend) -> None:
        await backend.broker.publish([Outgoing(new_id(), "orders", b"1", None, NO_HEADERS, "cause")])
        consumer = backend.broker.consume([ORDERS])
        deliveries = await consumer.fetch({ORDERS: 10})
        executed: list[str] = []
        await traced(backend, executed)

        assert await consumer.settle([Outcome(one, Action.ACK) for one in deliveries]) == []

        await traced(backend, None)
        assert any("DELETE FROM deliveries" in one for one in executed)
        assert not any("joins" in one or "members" in one or "store" in one for one in executed)

    async def test_a_file_of_the_version_before_gets_its_sets(self, path: Path, clock: VirtualClock) -> None:
        open_writer(Location(str(path))).close()
        with contextlib.closing(sqlite3.connect(path)) as file:
            file.executescript("DROP TABLE joins; DROP TABLE members; PRAGMA user_version = 1")
        backend = open_backend(f"sqlite:///{path}", clock=clock)
        await backend.broker.connect()

        assert await backend.store.join([member(1, 1)]) == [True]

        assert await run(backend, "PRAGMA user_version") == [(len(migrations()),)]
        await backend.broker.close()


class TestWaits:
    async def test_one_look_reads_all_that_is_awaited_at_once(self, backend: SqliteBackend, path: Path) -> None:
        keys = [f"result-{number}" for number in range(500)]
        waits = [asyncio.ensure_future(backend.store.changed({key: 0})) for key in keys]
        await backend.store.get([])
        executed: list[str] = []
        await traced(backend, executed)
        other = open_backend(f"sqlite:///{path}", clock=VirtualClock())
        await other.broker.connect()

        await other.store.write([Write(keys[7], b"done")])
        await waits[7]

        await traced(backend, None)
        assert len([one for one in executed if "json_array(key, version)" in one]) <= 3
        for wait in waits:
            wait.cancel()
        await other.broker.close()

    async def test_only_keys_that_this_process_wrote_are_read_after_its_commit(
        self, path: Path, clock: VirtualClock
    ) -> None:
        session = Session(Location(str(path)), clock)
        waits = Waits()
        waits.take(Wait({"a": 0}))
        waits.take(Wait({"b": 0}))
        session.begin()
        session.commit()
        assert waits.woken(session) == []
        executed: list[str] = []
        session.connection.set_trace_callback(executed.append)
        session.touched.add("other")

        assert waits.woken(session) == []

        session.close()
        assert executed == ["PRAGMA data_version"]

    async def test_nothing_is_left_of_a_wait_that_was_cancelled(self) -> None:
        waits, wait = Waits(), Wait({"a": 0, "b": 0})
        other = Wait({"b": 0})
        waits.take(wait)
        waits.take(other)

        wait.future.cancel()
        waits.take(wait)
        assert waits.take_all() == {other}

        waits.take(wait)
        assert not waits

    async def test_a_cancelled_wait_is_forgotten_at_once(self, backend: SqliteBackend) -> None:
        wait = asyncio.ensure_future(backend.store.changed({"a": 0}))
        await backend.store.get([])
        wait.cancel()
        await asyncio.gather(wait, return_exceptions=True)
        await backend.store.get([])
        executed: list[str] = []
        await traced(backend, executed)

        await backend.store.write([Write("a", b"1")])

        await traced(backend, None)
        assert "PRAGMA data_version" not in executed

    async def test_a_wait_ends_when_the_file_is_closed(self, path: Path, clock: VirtualClock) -> None:
        backend = open_backend(f"sqlite:///{path}", clock=clock)
        await backend.broker.connect()
        wait = asyncio.ensure_future(backend.store.changed({"a": 0}))
        await backend.store.get([])

        await backend.broker.close()

        with pytest.raises(NotConnected):
            await wait
        with pytest.raises(NotConnected, match="connect first"):
            await backend.store.changed({"a": 0})


class TestEntries:
    async def test_a_key_and_a_member_may_hold_any_character(self, backend: SqliteBackend) -> None:
        keys = ["nul\0", "nul\0 and more", 'a"b\\c\x1f\n\u2028é漢😀', ""]
        assert await backend.store.write([Write(key, key.encode(), expect=0) for key in keys]) == [True] * 4

        assert {key: one.value.decode() for key, one in (await backend.store.get(keys)).items()} == {k: k for k in keys}
        assert set(await backend.store.changed(dict.fromkeys(keys, 0))) == set(keys)
        joins = [Join(keys[0], key, keys[2], len(keys)) for key in keys]
        assert await backend.store.join([*joins, joins[-1]]) == [False, False, False, True, True]
        assert await backend.store.write([Write(key, None) for key in keys]) == [True] * 4
        assert await backend.store.get(keys) == {}

    async def test_a_batch_of_any_size_is_written_as_it_was_given(self, backend: SqliteBackend) -> None:
        values = {f"{number}": bytes([number]) * (number * 100_000) for number in range(25)}

        assert all(await backend.store.write([Write(key, value) for key, value in values.items()]))

        assert {key: entry.value for key, entry in (await backend.store.get([*values])).items()} == values

    async def test_the_writes_of_a_settle_take_the_same_few_statements_however_many(
        self, backend: SqliteBackend
    ) -> None:
        await backend.broker.publish([Outgoing(new_id(), "orders", b"1", None, NO_HEADERS, "cause") for _ in range(50)])
        consumer = backend.broker.consume([ORDERS])
        deliveries = await consumer.fetch({ORDERS: 50})
        writes = [[Write(f"record-{one.message.id}", b"over", expect=0), Write("last", b"1")] for one in deliveries]
        outcomes = [Outcome(one, Action.ACK, writes=some) for one, some in zip(deliveries, writes, strict=True)]
        executed: list[str] = []
        await traced(backend, executed)

        assert await consumer.settle(outcomes) == []

        await traced(backend, None)
        assert len([one for one in executed if "store" in one]) == 2
        assert (await backend.store.get(["last"]))["last"].version == 50
