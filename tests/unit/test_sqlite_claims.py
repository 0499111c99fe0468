"""Where SQLite's claims differ from the model's: packed bodies, cancelled fetches, several processes on one file."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO

import pytest

from carteiro.backends.sqlite import SqliteBackend, open_backend
from carteiro.errors import BrokerCorrupted, NotConnected, Unencodable
from carteiro.message import NO_HEADERS, Action, Delivery, Failure, Outcome, Outgoing, Retention, Subscription, new_id
from carteiro.ports.clock import SYSTEM_CLOCK
from carteiro.testing.clock import VirtualClock

ORDERS = Subscription("orders", "stock")
ORDERED = Subscription("orders", "stock", ordered=True)


def order(body: bytes = b"1", key: str | None = None, delay: float = 0.0) -> Outgoing:
    id = new_id()
    return Outgoing(id, "orders", body, key, NO_HEADERS, id, delay)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
async def backend(tmp_path: Path, clock: VirtualClock) -> AsyncIterator[SqliteBackend]:
    backend = open_backend(f"sqlite:///{tmp_path}/broker.db", clock=clock)
    await backend.broker.connect()
    await backend.broker.declare([ORDERS])
    yield backend
    await backend.broker.close()


async def fetch(backend: SqliteBackend, room: int = 100) -> list[Delivery]:
    return list(await backend.broker.consume([ORDERS]).fetch({ORDERS: room}))


async def test_bodies_of_every_size_and_byte_come_back_as_they_went(backend: SqliteBackend) -> None:
    bodies = [b"", bytes(range(256)), "Zoë Müller".encode(), b"\x00" * 65_536, b"\xff" * 65_537, b"", b"y" * 1_000_000]
    await backend.broker.publish([order(body) for body in bodies])
    assert [delivery.message.body for delivery in await fetch(backend)] == bodies


async def test_text_with_every_awkward_character_comes_back(backend: SqliteBackend) -> None:
    text = 'a"b\\c\x00\x1f\n\u2028é漢😀'
    sent = Outgoing(f"id-{text}", "orders", b"1", text, {text: text}, f"correlation-{text}")
    await backend.broker.publish([sent])
    (delivery,) = await fetch(backend)
    message = delivery.message
    assert (message.id, message.key, message.headers, message.correlation_id) == (
        sent.id,
        sent.key,
        sent.headers,
        sent.correlation_id,
    )


async def test_a_failure_whose_text_is_no_unicode_is_kept(backend: SqliteBackend) -> None:
    await backend.broker.publish([order()])
    consumer = backend.broker.consume([ORDERS])
    (delivery,) = await consumer.fetch({ORDERS: 1})
    failure = Failure(1, 1.5, "no file \udcff", "line 1\udcfe")
    assert await consumer.settle([Outcome(delivery, Action.RETRY, failure=failure)]) == []
    (again,) = await consumer.fetch({ORDERS: 1})
    assert again.history == (Failure(1, 1.5, "no file \\udcff", "line 1\\udcfe"),)


async def test_the_batch_keeps_its_order_whatever_its_messages_carry(backend: SqliteBackend) -> None:
    messages = [order(str(n).encode(), key="k" if n % 3 == 0 else None) for n in range(300)]
    await backend.broker.publish(messages)
    assert [one.message.id for one in await fetch(backend, 500)] == [message.id for message in messages]


async def test_what_was_claimed_for_a_cancelled_fetch_comes_with_the_next(backend: SqliteBackend) -> None:
    consumer = backend.broker.consume([ORDERS])
    waiting = asyncio.ensure_future(consumer.fetch({ORDERS: 1}))
    await backend.broker.publish([])  # the thread has parked the fetch
    # One commit answers both, and this task wakes first: the fetch has its answer and has not run on.
    await backend.broker.publish([order()])
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    (delivery,) = await consumer.fetch({ORDERS: 1})
    assert delivery.message.attempt == 1


async def test_what_no_handler_saw_is_handed_back_when_the_consumer_closes(backend: SqliteBackend) -> None:
    consumer = backend.broker.consume([ORDERS])
    await backend.broker.publish([order()])
    claimed = await consumer.fetch({ORDERS: 1})
    consumer._keep(claimed)  # as a cancelled fetch does
    await consumer.close()
    (delivery,) = await fetch(backend)
    assert delivery.message.attempt == 1


async def test_a_waiting_fetch_ends_when_its_consumer_closes(backend: SqliteBackend) -> None:
    consumer = backend.broker.consume([ORDERS])
    waiting = asyncio.ensure_future(consumer.fetch({ORDERS: 1}))
    await backend.broker.publish([])
    await consumer.close()
    with pytest.raises(NotConnected, match="closed"):
        await waiting


async def test_two_outcomes_for_one_delivery_settle_it_once(backend: SqliteBackend) -> None:
    await backend.broker.publish([order(), order()])
    consumer = backend.broker.consume([ORDERS])
    first, second = await consumer.fetch({ORDERS: 2})
    emit = Outgoing(new_id(), "orders", b"emitted", None, NO_HEADERS, "c")
    lost = await consumer.settle(
        [
            Outcome(first, Action.ACK, emits=[emit]),
            Outcome(first, Action.ACK, emits=[emit]),
            Outcome(second, Action.ACK),
        ]
    )
    assert lost == [first]
    assert len(await backend.broker.peek("orders", "stock")) == 1


@pytest.mark.parametrize("action", Action)
async def test_of_a_settle_only_what_lost_its_lease_is_refused(
    backend: SqliteBackend, clock: VirtualClock, action: Action
) -> None:
    await backend.broker.publish([order(str(n).encode()) for n in range(6)])
    consumer = backend.broker.consume([ORDERS])
    lapsed = await consumer.fetch({ORDERS: 2})
    clock.advance_to(clock.time() + ORDERS.lease + 1)
    taken = await consumer.fetch({ORDERS: 6})  # the last two are those, under a newer token
    emits = [order(b"emitted")]
    outcomes = [Outcome(one, action, 60.0, Failure(1, 1.5, "no"), emits) for one in [*lapsed, *taken[:5]]]

    assert await consumer.settle(outcomes) == lapsed

    bodies = sorted(message.body for message in await backend.broker.peek("orders", "stock", 100))
    waiting = [b"0", b"2", b"3", b"4", b"5"] if action in (Action.RETRY, Action.RELEASE) else []
    assert bodies == [*waiting, *[b"emitted"] * 5]
    assert len(await backend.broker.dead_letters()) == (5 if action is Action.DEAD else 0)


async def test_a_retry_and_its_failures_come_back_among_fresh_messages(backend: SqliteBackend) -> None:
    await backend.broker.publish([order(b"1"), order(b"x" * 100_000), order(b"3")])
    consumer = backend.broker.consume([ORDERS])
    failure = Failure(1, 1.5, "no\0room", "line 1")
    first = await consumer.fetch({ORDERS: 2})
    assert await consumer.settle([Outcome(one, Action.RETRY, failure=failure) for one in first]) == []

    again = await fetch(backend)

    attempts = {one.message.body[:1]: (one.message.attempt, one.history) for one in again}
    kept = (Failure(1, 1.5, "no\\x00room", "line 1"),)
    assert attempts == {b"1": (2, kept), b"x": (2, kept), b"3": (1, ())}


async def test_keys_of_any_text_have_their_order(backend: SqliteBackend) -> None:
    await backend.broker.declare([ORDERED])
    await backend.broker.publish([order(b"1", "a\0b"), order(b"2", "a\0b"), order(b"3", 'a"b'), order(b"4", "42")])
    consumer = backend.broker.consume([ORDERED])
    heads = await consumer.fetch({ORDERED: 10})
    assert [one.message.body for one in heads] == [b"1", b"3", b"4"]
    await consumer.settle([Outcome(one, Action.ACK) for one in heads])
    (last,) = await consumer.fetch({ORDERED: 10})
    assert (last.message.body, last.message.key) == (b"2", "a\0b")


@pytest.mark.parametrize(
    "unfit",
    [
        Outgoing(7, "orders", b"1", None, NO_HEADERS, "c"),  # type: ignore[arg-type]
        Outgoing("7", "orders", b"1", 7, NO_HEADERS, "c"),  # type: ignore[arg-type]
        Outgoing("7", "orders", b"1", None, {"retries": 7}, "c"),  # type: ignore[dict-item]
    ],
)
async def test_what_could_not_be_read_again_is_refused_and_takes_nothing_with_it(
    backend: SqliteBackend, unfit: Outgoing
) -> None:
    good = order()
    refused, kept = await asyncio.gather(
        backend.broker.publish([order(), unfit]), backend.broker.publish([good]), return_exceptions=True
    )
    assert isinstance(refused, Unencodable)
    assert "to be text" in str(refused)
    assert kept == []
    assert [one.message.id for one in await fetch(backend)] == [good.id]


async def test_a_record_that_is_damaged_is_an_error_that_says_so(backend: SqliteBackend) -> None:
    await backend.broker.publish([order()])
    await backend.broker._database.write(
        lambda session: session.connection.execute("UPDATE deliveries SET record = ''")
    )
    with pytest.raises(BrokerCorrupted, match="restore a backup"):
        await fetch(backend)


async def test_a_batch_larger_than_sqlite_takes_at_once_is_kept_whole(backend: SqliteBackend) -> None:
    bodies = [bytes([n]) * 6_000_000 for n in range(5)]
    await backend.broker.publish([order(body) for body in bodies])
    assert [one.message.body for one in await fetch(backend)] == bodies


async def test_turning_order_on_and_off_takes_effect_on_what_waits(backend: SqliteBackend) -> None:
    await backend.broker.publish([order(b"1", "k"), order(b"2", "k"), order(b"3")])
    await backend.broker.declare([ORDERED])
    consumer = backend.broker.consume([ORDERED])
    claimed = await consumer.fetch({ORDERED: 10})
    assert [one.message.body for one in claimed] == [b"1", b"3"]

    await backend.broker.declare([ORDERS])
    (second,) = await consumer.fetch({ORDERS: 10})
    assert second.message.body == b"2"


async def test_a_rewound_ordered_group_gets_each_key_in_the_order_published(backend: SqliteBackend) -> None:
    await backend.broker.declare([ORDERED], [Retention("orders", 3600)])
    await backend.broker.publish([order(str(n).encode(), "k") for n in range(4)])
    consumer = backend.broker.consume([ORDERED])
    for _ in range(2):
        (delivery,) = await consumer.fetch({ORDERED: 10})
        await consumer.settle([Outcome(delivery, Action.ACK)])

    assert await backend.broker.rewind("orders", "stock", 0) == 2

    seen = []
    for _ in range(4):
        (delivery,) = await consumer.fetch({ORDERED: 10})
        await consumer.settle([Outcome(delivery, Action.ACK)])
        seen.append(delivery.message.body)
    assert seen == [b"0", b"1", b"2", b"3"]


async def test_a_process_that_was_frozen_declares_its_broadcast_anew(
    backend: SqliteBackend, clock: VirtualClock, tmp_path: Path
) -> None:
    inbox = Subscription("news", "process-1", ephemeral=True)
    news = Outgoing(new_id(), "news", b"1", None, NO_HEADERS, "c")
    await backend.broker.declare([inbox])
    time_elsewhere = VirtualClock()
    other = open_backend(f"sqlite:///{tmp_path}/broker.db", clock=time_elsewhere)
    await other.broker.connect()
    assert await other.broker.publish([news]) == []

    time_elsewhere.advance_to(clock.time() + 60)  # while this process, frozen, says nothing
    assert await other.broker.publish([news]) == [news]

    clock.advance_to(clock.time() + 60)
    await backend.broker.publish([])
    assert await other.broker.publish([news]) == []
    await other.broker.close()


_WORKER = """
import asyncio, sys
from carteiro.message import Subscription
from carteiro.ports.registry import open_backend

async def main(url):
    broker = open_backend(url).broker
    await broker.connect()
    orders = Subscription("orders", "stock", lease=0.2)
    await broker.declare([orders])
    consumer = broker.consume([orders])
    print("waiting", flush=True)
    (delivery,) = await consumer.fetch({orders: 1})
    print(delivery.message.body.decode(), delivery.message.attempt, flush=True)
    await asyncio.Event().wait()

asyncio.run(main(sys.argv[1]))
"""


def _start(url: str) -> subprocess.Popen[str]:
    worker = subprocess.Popen([sys.executable, "-c", _WORKER, url], stdout=subprocess.PIPE, text=True)
    assert _line(worker) == "waiting"
    return worker


def _output(worker: subprocess.Popen[str]) -> IO[str]:
    assert worker.stdout is not None
    return worker.stdout


def _line(worker: subprocess.Popen[str]) -> str:
    return _output(worker).readline().strip()


async def _publish(url: str) -> None:
    broker = open_backend(url, clock=SYSTEM_CLOCK).broker
    await broker.connect()
    await broker.publish([order(b"hello")])
    await broker.close()


def test_another_process_wakes_and_a_killed_one_leaves_its_message(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/broker.db"
    workers = [_start(url), _start(url)]
    try:
        asyncio.run(_publish(url))
        (output, *_), _, _ = select.select([_output(worker) for worker in workers], [], [])
        first, second = sorted(workers, key=lambda worker: _output(worker) is not output)
        assert _line(first) == "hello 1"
        os.kill(first.pid, signal.SIGKILL)
        assert _line(second) == "hello 2"
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
