"""The outbox: what is published while the broker is away is kept, and goes out in order when it is back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from carteiro import Carteiro
from carteiro.backends.redis.natives import RedisStream
from carteiro.engine.outbox import DEDUPED
from carteiro.engine.outbox_file import BYTES_AT_ONCE, TERM, OutboxFile, OutboxStatus
from carteiro.engine.publisher import Publisher
from carteiro.errors import (
    BrokerCorrupted,
    BrokerError,
    BrokerUnavailable,
    CircuitOpen,
    NotConnected,
    Unencodable,
    Unroutable,
)
from carteiro.message import Outgoing
from carteiro.policies.breaker import Breaker
from carteiro.ports.broker import Check, Inspector
from carteiro.ports.clock import SYSTEM_CLOCK, Clock
from carteiro.testing import TestApp
from carteiro.testing.clock import VirtualClock
from tests.unit.outage import ORDERS, QuickClock, Unsteady, outgoing, until

EVENTS = "redis://nowhere/0"
"""What identifies the broker that the processes call `events`."""


class Process:
    """What one process has: a publisher with an outbox. The broker and the file are shared with others."""

    def __init__(
        self, broker: Unsteady, path: Path, clock: Clock, name: str = "events", identity: str = EVENTS
    ) -> None:
        self.file = OutboxFile(str(path), clock)
        self._identity = identity
        self.publisher = Publisher(
            broker, (), clock, 30.0, name=name, identity=identity, breaker=Breaker(after=2, longest=2),
            outbox=self.file,
        )  # fmt: skip

    @property
    def waits(self) -> bool:
        return self.file.waits(self._identity)

    async def publish(self, *bodies: int) -> None:
        for body in bodies:
            await self.publisher.publish(outgoing(body))

    async def status(self) -> OutboxStatus:
        status = await self.publisher.outbox()
        assert status is not None
        return status

    async def kill(self) -> None:
        """What a SIGKILL leaves: a file, and a name in it that forwards no more."""
        outbox = self.publisher._outbox
        assert outbox is not None
        assert outbox._forwarding is not None
        outbox._forwarding.cancel()
        await asyncio.wait([outbox._forwarding])
        outbox._forwarding = None
        await self.publisher.close()
        await self.file.close()


@contextlib.asynccontextmanager
async def process(
    broker: Unsteady, path: Path, clock: Clock, name: str = "events", identity: str = EVENTS
) -> AsyncIterator[Process]:
    one = Process(broker, path, clock, name, identity)
    await one.publisher.open()
    try:
        yield one
    finally:
        await one.publisher.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop-outbox.db"


@pytest.fixture
def clock() -> QuickClock:
    return QuickClock()


@pytest.fixture
async def broker(clock: QuickClock) -> Unsteady:
    broker = Unsteady(clock)
    await broker.declare([ORDERS])
    return broker


def numbers(*found: range | int) -> list[bytes]:
    return [b"%d" % n for part in found for n in ([part] if isinstance(part, int) else part)]


# -- keeping and forwarding --------------------------------------------------------------------------------------------


async def test_while_the_broker_is_there_nothing_is_kept(broker: Unsteady, path: Path, clock: QuickClock):
    async with process(broker, path, clock) as one:
        await one.publish(1, 2)
        await one.publisher.publish_many([outgoing(3), outgoing(4)])
        assert broker.bodies == numbers(1, 2, 3, 4)
        assert await one.status() == OutboxStatus(waiting=0, oldest=None, refused=0)


async def test_what_is_published_while_it_is_away_is_forwarded_in_order_when_it_is_back(
    broker: Unsteady, path: Path, clock: QuickClock
):
    async with process(broker, path, clock) as one:
        await one.publish(0)
        broker.away = True
        await one.publish(1, 2)
        await one.publisher.publish_many([outgoing(n) for n in range(3, 1500)])
        await one.publish(1500)
        assert broker.bodies == numbers(0)
        status = await one.status()
        assert status.waiting == 1500
        assert status.oldest is not None
        assert status.oldest > 0

        broker.away = False
        await until(lambda: len(broker.taken) == 1501)
        assert broker.bodies == numbers(range(1501))
        await until(lambda: not one.waits)
        await one.publish(1501)
        assert broker.bodies[-1] == b"1501"


async def test_a_message_comes_out_as_it_went_in(broker: Unsteady, path: Path, clock: QuickClock):
    message = Outgoing("id-1", "orders", b"\x00\xff", "ana", {"x-tenant": "Zoë"}, "flow-1", dedupe=30.0)
    async with process(broker, path, clock) as one:
        broker.away = True
        await one.publisher.publish(message)
        broker.away = False
        await until(lambda: broker.taken)

    (taken,) = broker.taken
    assert taken is not message
    assert msgspec.structs.asdict(taken) == msgspec.structs.asdict(message)


async def test_while_something_waits_what_is_published_goes_behind_it_though_the_broker_is_back(
    broker: Unsteady, path: Path, clock: QuickClock
):
    async with process(broker, path, clock) as one:
        broker.away = True
        await one.publish(*range(5))
        broker.may_answer.clear()
        broker.away = False
        await one.publish(5, 6)
        assert broker.bodies == []
        broker.may_answer.set()
        await until(lambda: len(broker.taken) == 7)
        assert broker.bodies == numbers(range(7))


async def test_a_hiccup_is_waited_for_and_fills_no_file(path: Path):
    clock = VirtualClock()
    broker = Unsteady(clock)
    async with process(broker, path, clock) as one:
        broker.away = True
        publishing = asyncio.create_task(one.publish(1))
        await until(lambda: broker.tries == 2, clock)
        broker.away = False
        await until(publishing.done, clock)
        assert broker.bodies == [b"1"]
        assert not one.waits


async def test_many_go_to_the_file_in_one_commit(
    broker: Unsteady, path: Path, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
):
    async with process(broker, path, clock) as one:
        broker.away = True
        calls: list[int] = []
        keep = one.file.keep

        async def counted(name: str, messages: Sequence[object]) -> None:
            calls.append(len(messages))
            await keep(name, messages)  # type: ignore[arg-type]

        monkeypatch.setattr(one.file, "keep", counted)
        await one.publisher.publish_many([outgoing(n) for n in range(12_000)])
        await asyncio.gather(*(one.publisher.publish(outgoing(n)) for n in range(300)))
        assert calls == [12_000, 300]


async def test_a_delay_counts_from_when_it_was_published(path: Path):
    clock = VirtualClock()
    broker = Unsteady(clock)
    async with process(broker, path, clock) as one:
        broker.away = True
        published = clock.time()
        await publishing(one, clock, outgoing(60, delay=60), outgoing(600, delay=600))
        clock.advance_to(published + 90)
        broker.away = False
        await until(lambda: broker.taken, clock)

    late, early = broker.taken
    assert late.delay == 0
    assert 0 < early.delay <= 510
    assert broker.due[1] == pytest.approx(published + 600)


async def publishing(one: Process, clock: VirtualClock, *messages: Outgoing) -> None:
    """Publish them at once, and let time pass until they are safe."""
    task = asyncio.create_task(one.publisher.publish_many(messages))
    await until(task.done, clock)
    await task


async def test_a_message_that_nobody_gets_is_counted_when_it_is_forwarded(
    broker: Unsteady, path: Path, clock: QuickClock
):
    async with process(broker, path, clock) as one:
        broker.away = True
        await one.publisher.publish(outgoing(1, "nobody"))
        assert broker.unrouted.counts == {}
        broker.away = False
        await until(lambda: broker.unrouted.counts)
        assert broker.unrouted.counts == {"nobody": 1}


async def test_what_is_mandatory_goes_past_the_outbox(broker: Unsteady, path: Path, clock: QuickClock):
    async with process(broker, path, clock) as one:
        broker.away = True
        await one.publish(1)
        with pytest.raises(CircuitOpen):
            await one.publisher.publish(outgoing(2), mandatory=True)
        with pytest.raises(CircuitOpen):
            await one.publisher.publish_many([outgoing(3)], mandatory=True)
        broker.away = False
        await until(lambda: broker.bodies == [b"1"])
        await one.publisher.publish(outgoing(4), mandatory=True)
        with pytest.raises(Unroutable):
            await one.publisher.publish(outgoing(5, "nobody"), mandatory=True)


async def test_what_goes_to_an_object_of_the_brokers_own_goes_there(broker: Unsteady, path: Path, clock: QuickClock):
    features = msgspec.structs.replace(broker.features, stands_in=True)
    broker.features = features
    stream = RedisStream("clicks", body="text", maxlen=1000)
    async with process(broker, path, clock) as one:
        broker.away = True
        await one.publisher.publish(msgspec.structs.replace(outgoing(1, stream.topic), target=stream))
        broker.away = False
        await until(lambda: broker.taken)
    assert broker.taken[0].target == stream
    assert broker.taken[0].dedupe is None


# -- across processes and restarts -------------------------------------------------------------------------------------


async def test_what_was_kept_outlives_the_process(broker: Unsteady, path: Path, clock: QuickClock):
    broker.away = True
    async with process(broker, path, clock) as one:
        await one.publish(1, 2)
    async with process(broker, path, clock) as next_one:
        await next_one.publish(3)
        broker.away = False
        await until(lambda: len(broker.taken) == 3)
    assert broker.bodies == numbers(1, 2, 3)


async def test_processes_share_the_file_and_its_order(broker: Unsteady, path: Path, clock: QuickClock):
    async with process(broker, path, clock) as one, process(broker, path, clock) as other:
        broker.away = True
        for number in range(0, 100, 2):
            await one.publish(number)
            await other.publish(number + 1)
        broker.away = False
        await until(lambda: len(broker.taken) >= 100)
        assert broker.bodies == numbers(range(100))
        await until(lambda: not one.waits)
        assert not other.waits


async def test_one_process_forwards_at_a_time(broker: Unsteady, path: Path, monkeypatch: pytest.MonkeyPatch):
    under_way, most, publish = 0, 0, broker.publish

    async def counted(messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        nonlocal under_way, most
        if messages[0].topic == "$probe":
            return await publish(messages)
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        try:
            return await publish(messages)
        finally:
            under_way -= 1

    broker.away = True
    clock = QuickClock(pace=10)  # a term is to be longer than the machine may hesitate
    async with contextlib.AsyncExitStack() as exits:
        crew = [await exits.enter_async_context(process(broker, path, clock)) for _ in range(4)]
        await asyncio.gather(*(one.publisher.publish_many([outgoing(n) for n in range(2500)]) for one in crew))
        monkeypatch.setattr(broker, "publish", counted)
        broker.away = False
        await until(lambda: len(broker.taken) >= 10_000)
    assert most == 1
    assert len({message.id for message in broker.taken}) == len(broker.taken) == 10_000


async def test_a_killed_forwarder_is_taken_over_when_its_term_ends(broker: Unsteady, path: Path, clock: QuickClock):
    broker.away = True
    victim = Process(broker, path, clock)
    await victim.publisher.open()
    await victim.publish(1, 2, 3)
    file = OutboxFile(str(path), clock)
    await file.open()
    await until(lambda: broker.tries > 3)
    assert not await file.claim(EVENTS, "somebody"), "nobody forwarded"
    await victim.kill()
    broker.away = False
    since = clock.monotonic()
    async with process(broker, path, clock):
        await until(lambda: len(broker.taken) == 3)
    await file.close()
    assert broker.bodies == numbers(1, 2, 3)
    assert clock.monotonic() - since > TERM / 4


async def test_a_process_that_closes_lets_another_one_begin_at_once(broker: Unsteady, path: Path, clock: QuickClock):
    broker.away = True
    async with process(broker, path, clock) as one:
        await one.publish(1)
        await until(lambda: broker.tries > 3)
    file = OutboxFile(str(path), clock)
    await file.open()
    assert await file.claim(EVENTS, "somebody")
    await file.close()


async def test_a_term_that_ends_in_hours_was_written_by_another_clock(path: Path):
    clock = VirtualClock()
    file = OutboxFile(str(path), clock)
    await file.open()
    clock.advance_to(clock.time() + 7200)
    assert await file.claim(EVENTS, "before the clock went back")
    file._clock = VirtualClock()
    assert await file.claim(EVENTS, "after it")
    assert not await file.claim(EVENTS, "before the clock went back")
    await file.close()


async def test_what_a_crash_forwards_again_has_the_same_id_and_the_broker_drops_it(
    broker: Unsteady, path: Path, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
):
    broker.away = True
    victim = Process(broker, path, clock)
    await victim.publisher.open()
    await victim.publish(1, 2)
    forwarded = asyncio.Event()

    async def never(ids: Sequence[int]) -> None:
        forwarded.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(victim.file, "drop", never)
    broker.away = False
    await until(forwarded.is_set)
    assert broker.bodies == numbers(1, 2)
    await victim.kill()
    async with process(broker, path, clock) as heir:
        await until(lambda: not heir.waits)

    assert [message.dedupe for message in broker.taken] == [DEDUPED] * 4
    assert len({message.id for message in broker.taken}) == 2
    (status,) = await broker.groups()
    assert status.waiting == 2


async def test_each_broker_of_an_app_has_its_own_in_one_file(broker: Unsteady, path: Path, clock: QuickClock):
    other = Unsteady(clock)
    await other.declare([ORDERS])
    broker.away = True
    async with (
        process(broker, path, clock) as events,
        process(other, path, clock, "default", "redis://there/0") as default,
    ):
        await events.publish(1)
        await default.publish(2)
        assert other.bodies == [b"2"], "it waits for another broker's outage"
        assert (await events.status()).waiting == 1
        broker.away = False
        await until(lambda: broker.bodies == [b"1"])


async def test_what_was_kept_goes_to_the_same_broker_whatever_the_app_calls_it_now(
    broker: Unsteady, path: Path, clock: QuickClock
):
    other = Unsteady(clock)
    await other.declare([ORDERS])
    broker.away = True
    async with process(broker, path, clock, "default") as one:
        await one.publish(1, 2)
    broker.away = False
    async with process(other, path, clock, "default", "redis://there/0"), process(broker, path, clock, "second") as one:
        await until(lambda: not one.waits)
    assert broker.bodies == numbers(1, 2)
    assert other.bodies == []


async def test_what_waits_for_a_broker_that_the_app_has_no_more_stays_and_is_told_of(
    broker: Unsteady, path: Path, clock: QuickClock, caplog: pytest.LogCaptureFixture
):
    other = Unsteady(clock)
    broker.away = True
    async with process(broker, path, clock) as one:
        await one.publish(1, 2, 3)
    assert "does not have" not in caplog.text
    async with process(other, path, clock, "events", "redis://there/0") as one:
        assert await one.status() == OutboxStatus(waiting=0, oldest=None, refused=0, stray=3)
    assert f"3 messages in the outbox `{path}` are for the broker `{EVENTS}`, which this app does not have" in (
        caplog.text
    )
    broker.away = False
    async with process(broker, path, clock):
        await until(lambda: len(broker.taken) == 3)
    assert other.bodies == []


async def test_a_forwarder_that_was_overtaken_by_one_that_is_done_comes_to_rest(
    broker: Unsteady, path: Path, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
):
    broker.away = True
    async with process(broker, path, clock) as one:
        await one.publish(1)
    broker.away = False
    broker.may_answer.clear()
    tries = broker.tries
    async with process(broker, path, VirtualClock()) as overtaken:
        await until(lambda: broker.tries > tries)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("DELETE FROM messages")
            connection.execute("DELETE FROM forwarders")
        looks, at_rest, shrink, look = 0, asyncio.Event(), overtaken.file.shrink, overtaken.file.next

        async def counted(name: str) -> Any:
            nonlocal looks
            looks += 1
            return await look(name)

        async def last_step() -> None:
            await shrink()
            at_rest.set()

        monkeypatch.setattr(overtaken.file, "next", counted)
        monkeypatch.setattr(overtaken.file, "shrink", last_step)
        broker.may_answer.set()
        await until(lambda: at_rest.is_set() or looks > 50)
        assert looks == 1


# -- what goes wrong ---------------------------------------------------------------------------------------------------


async def test_what_the_broker_refuses_holds_up_nobody_and_is_tried_again_at_the_next_start(
    broker: Unsteady, path: Path, clock: QuickClock, caplog: pytest.LogCaptureFixture
):
    broker.away = True
    broker.error = lambda messages: BrokerError("13 is bad luck") if b"13" in [m.body for m in messages] else None
    async with process(broker, path, clock) as one:
        await one.publish(12, 13, 14)
        broker.away = False
        await until(lambda: len(broker.taken) == 2)
        await until(lambda: not one.waits)
        assert await one.status() == OutboxStatus(waiting=0, oldest=None, refused=1)
    assert broker.bodies == numbers(12, 14)
    assert "13 is bad luck" in caplog.text

    broker.error = lambda messages: None
    async with process(broker, path, clock) as one:
        await until(lambda: len(broker.taken) == 3)
    assert broker.bodies == numbers(12, 14, 13)


@pytest.mark.parametrize(
    "error",
    [
        NotConnected("`redis://nowhere` is not connected"),
        RuntimeError("cannot schedule new futures after shutdown"),
        BrokerCorrupted("the broker's file cannot be read"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_error_that_is_not_about_the_message_sets_none_aside(
    broker: Unsteady, path: Path, clock: QuickClock, error: Exception
):
    async with process(broker, path, clock) as one:
        broker.away = True
        await one.publish(1, 2, 3)
        broker.error = lambda messages: error
        broker.away = False
        tries = broker.tries
        await until(lambda: broker.tries > tries + 3)
        status = await one.status()
        assert (status.waiting, status.refused) == (3, 0)
        broker.error = lambda messages: None
        await until(lambda: len(broker.taken) == 3)
    assert broker.bodies == numbers(1, 2, 3)


async def test_what_cannot_be_read_any_more_is_set_aside(broker: Unsteady, path: Path, clock: QuickClock):
    broker.away = True
    async with process(broker, path, clock) as one:
        await one.publish(1, 2, 3)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE messages SET target = ? WHERE id = 2", (b'["no.such.module", "Key", {}]',))
    broker.away = False
    async with process(broker, path, clock) as one:
        await until(lambda: not one.waits)
        assert (await one.status()).refused == 1
    assert broker.bodies == numbers(1, 3)


async def test_what_the_broker_has_is_not_sent_again_while_it_cannot_be_taken_out_of_the_file(
    broker: Unsteady, path: Path, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
):
    async with process(broker, path, clock) as one:
        broker.away = True
        await one.publish(1, 2, 3)
        fails, drop = [BrokerUnavailable("the outbox is locked")] * 3, one.file.drop

        async def locked(ids: Sequence[int]) -> None:
            if fails:
                raise fails.pop()
            await drop(ids)

        monkeypatch.setattr(one.file, "drop", locked)
        broker.away = False
        await until(lambda: not one.waits)
    assert not fails
    assert broker.bodies == numbers(1, 2, 3)


async def test_what_cannot_be_kept_fails_alone(broker: Unsteady, path: Path, clock: QuickClock):
    async with process(broker, path, clock) as one:
        broker.away = True
        bad = msgspec.structs.replace(outgoing(2), headers={"n": 1})
        results = await asyncio.gather(
            *(one.publisher.publish(message) for message in (outgoing(1), bad, outgoing(3))), return_exceptions=True
        )
        broker.away = False
        await until(lambda: len(broker.taken) == 2)
    assert [type(result) for result in results] == [type(None), Unencodable, type(None)]
    assert broker.bodies == numbers(1, 3)


async def test_a_file_that_takes_nothing_is_an_error_with_the_outage_as_its_cause(
    broker: Unsteady, path: Path, clock: QuickClock
):
    async with process(broker, path, clock) as one:
        broker.away = True
        pages = one.file._writer.execute("PRAGMA page_count").fetchone()[0]
        one.file._writer.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(BrokerUnavailable, match=r"shop-outbox.db` cannot be used \(.*full\)") as raised:
            await one.publisher.publish(outgoing(b"x" * 100_000))
        assert str(raised.value.__cause__).startswith("redis://nowhere") or raised.value.__cause__ is not None
        await one.publish(1)
        broker.away = False
        await until(lambda: broker.bodies == [b"1"])


async def test_a_file_that_was_removed_is_an_error_and_no_loss(broker: Unsteady, path: Path, clock: QuickClock):
    async with process(broker, path, clock) as one:
        broker.away = True
        os.unlink(path)
        with pytest.raises(BrokerUnavailable, match="was moved, removed or replaced"):
            await one.publish(1)


async def test_a_file_that_is_something_else_says_so(broker: Unsteady, path: Path, clock: QuickClock):
    await asyncio.to_thread(path.write_bytes, b"not a database, " * 1000)
    with pytest.raises(BrokerCorrupted, match=r"shop-outbox.db` cannot be read"):
        async with process(broker, path, clock):
            pass


async def test_a_folder_that_is_not_there_says_so(broker: Unsteady, tmp_path: Path, clock: QuickClock):
    with pytest.raises(BrokerUnavailable, match="needs the directory"):
        async with process(broker, tmp_path / "nowhere" / "outbox.db", clock):
            pass


async def test_large_messages_are_forwarded_a_few_at_once(broker: Unsteady, path: Path, clock: QuickClock):
    async with process(broker, path, clock) as one:
        broker.away = True
        await one.publisher.publish_many([outgoing(b"x" * (BYTES_AT_ONCE // 4)) for _ in range(10)])
        batch = await one.file.next(EVENTS)
        assert len(batch) == 4
        broker.away = False
        await until(lambda: len(broker.taken) == 10)


async def test_an_outage_fills_the_file_and_its_end_gives_the_room_back(
    broker: Unsteady, path: Path, clock: QuickClock
):
    async with process(broker, path, clock) as one:
        broker.away = True
        await one.publisher.publish_many([outgoing(b"x" * 1000) for _ in range(5000)])
        broker.away = False
        await until(lambda: len(broker.taken) == 5000)
        assert sum(await asyncio.to_thread(sizes, path)) > 5_000_000
        await until(lambda: sizes(path)[0] < 100_000)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM forwarders").fetchone() == (0,)


def sizes(path: Path) -> list[int]:
    """Of the file and its log."""
    return [os.path.getsize(path), os.path.getsize(f"{path}-wal")]


async def test_an_outage_is_told_of_when_it_begins_and_when_it_is_over(
    broker: Unsteady, path: Path, clock: QuickClock, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "carteiro.outbox")
    async with process(broker, path, clock) as one:
        broker.away = True
        await one.publish(*range(20))
        broker.away = False
        await until(lambda: "forwarded to" in caplog.text)
    lines = [record.getMessage() for record in caplog.records if record.name == "carteiro.outbox"]
    assert [line.partition(":")[0] for line in lines] == [
        f"what is published to the broker `events` is kept in `{path}`, and forwarded when it is back",
        "20 messages were forwarded to the broker `events`",
    ]


# -- an app's ----------------------------------------------------------------------------------------------------------


class Late(Unsteady):
    """A broker that is not even there to connect to, at first."""

    connected = False

    async def connect(self) -> None:
        if self.away:
            raise BrokerUnavailable("redis://nowhere cannot be reached")
        self.connected = True

    async def close(self) -> None:
        assert self.connected


class Backend:
    store = None

    def __init__(self, broker: Unsteady) -> None:
        self.broker = broker

    async def doctor(self) -> Sequence[Check]:
        return []


def shop(broker: Unsteady, path: Path, clock: Clock, **options: Any) -> Carteiro:
    app = Carteiro("shop", Backend(broker), outbox=path, clock=clock, **options)

    @app.subscriber("orders")
    async def handle(order: int) -> None: ...

    return app


async def test_an_app_that_starts_while_its_broker_is_away_publishes_and_declares_its_groups_later(
    path: Path, clock: QuickClock
):
    broker = Late(clock)
    broker.away = True
    async with shop(broker, path, clock) as app:
        await app.publish("orders", 1)
        await app.publish_many("orders", [2, 3])
        with pytest.raises(BrokerUnavailable):
            await app.publish("orders", 4, mandatory=True)
        broker.away = False
        await until(lambda: len(broker.taken) == 3)
        (status,) = await broker.groups()
    assert (status.group, status.waiting) == ("shop", 3)
    assert broker.bodies == numbers(1, 2, 3)


async def test_an_app_that_gives_its_brokers_other_names_forwards_to_the_one_for_which_it_was_kept(
    tmp_path: Path, path: Path
):
    here, there = (f"sqlite:///{tmp_path}/{folder}/shop.db" for folder in ("here", "there"))
    async with Carteiro("shop", there, outbox=path, publish_timeout=0) as app:  # without its folder it is away
        await app.publish("orders", 1)
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    app = Carteiro("shop", brokers={"default": here, "events": there}, outbox=path)

    @app.subscriber("orders", broker="default")
    async def handle_here(order: int) -> None: ...

    @app.subscriber("orders", broker="events")
    async def handle_there(order: int) -> None: ...

    async with app:
        await until(lambda: not waits(path))
        for name, count in {"default": 0, "events": 1}.items():
            broker = app.connections[name].broker
            assert isinstance(broker, Inspector)
            (status,) = await broker.groups()
            assert status.waiting == count


def waits(path: Path) -> int:
    """How many messages are in the file."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        count: int = connection.execute("SELECT count(*) FROM messages").fetchone()[0]
        return count


async def test_an_app_whose_broker_never_comes_ends_in_good_order(path: Path, clock: QuickClock):
    broker = Late(clock)
    broker.away = True
    async with shop(broker, path, clock) as app:
        await app.publish("orders", 1)
        assert await app.connection.publisher.outbox() is not None
    assert not broker.connected


async def test_a_cancel_while_it_closes_leaves_nothing_running(path: Path, clock: QuickClock):
    broker = Unsteady(clock)
    app = shop(broker, path, clock)
    kept, leave = asyncio.Event(), asyncio.Event()

    async def serve() -> None:
        async with app:
            broker.away = True
            await app.publish("orders", 1)
            kept.set()
            await leave.wait()

    serving = asyncio.create_task(serve())
    await kept.wait()
    broker.may_answer.clear()
    broker.away = False
    tries = broker.tries
    await until(lambda: broker.tries > tries)  # a batch is under way, and closing waits for it
    leave.set()
    await until(lambda: closes(app))
    serving.cancel()
    await asyncio.sleep(0)
    broker.may_answer.set()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert [task.get_name() for task in asyncio.all_tasks() if "outbox" in task.get_name()] == []
    assert not waits(path)


def closes(app: Carteiro) -> bool:
    with contextlib.suppress(NotConnected):
        return app.connection is None
    return True


async def test_code_without_an_event_loop_has_it_too(path: Path):
    broker = Late(SYSTEM_CLOCK)
    broker.away = True
    app = shop(broker, path, SYSTEM_CLOCK)
    await asyncio.to_thread(app.publish_sync, "orders", 1)
    assert waits(path) == 1


async def test_by_default_the_file_has_the_apps_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    async with Carteiro("eu/shop", "memory://", outbox=True):
        assert sorted(os.listdir(tmp_path)) == [
            "eu%2Fshop-outbox.db", "eu%2Fshop-outbox.db-shm", "eu%2Fshop-outbox.db-wal",
        ]  # fmt: skip


async def test_a_test_of_the_app_has_none(path: Path, clock: QuickClock):
    async with TestApp(shop(Unsteady(clock), path, clock)) as t:
        await t.publish("orders", 1)
        assert t.published("orders") == [1]
    assert not os.listdir(os.path.dirname(path))
