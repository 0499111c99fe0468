"""What is the memory backend's own: the rest is the conformance kit's and the model's."""

from __future__ import annotations

import asyncio

import pytest

from carteiro.backends.memory import MemoryBackend, open_backend
from carteiro.backends.memory.queue import Queue, Row
from carteiro.backends.memory.state import State
from carteiro.errors import BrokerError, NotConnected
from carteiro.message import Action, Join, Outcome, Outgoing, Subscription, new_id
from carteiro.ports.clock import SYSTEM_CLOCK
from carteiro.testing.clock import VirtualClock

ORDERS = Subscription("orders", "stock")


def message(body: bytes = b"order", key: str | None = None) -> Outgoing:
    return Outgoing(new_id(), "orders", body, key, {}, "cause")


async def waiting(backend: MemoryBackend) -> list[int]:
    return [status.waiting for status in await backend.broker.groups()]


async def test_each_nameless_broker_is_a_fresh_one() -> None:
    first, second = (open_backend("memory://", clock=SYSTEM_CLOCK) for _ in range(2))
    await first.broker.declare([ORDERS])

    assert (await waiting(first), await waiting(second)) == ([0], [])


async def test_a_name_is_one_broker_for_the_process() -> None:
    first, second = (open_backend("memory://one-for-the-process", clock=SYSTEM_CLOCK) for _ in range(2))
    await first.broker.declare([ORDERS])
    await second.broker.publish([message()])
    await second.broker.close()

    assert await waiting(first) == [1]


async def test_consuming_what_was_never_declared_is_an_error_that_names_it() -> None:
    broker = open_backend("memory://", clock=SYSTEM_CLOCK).broker

    with pytest.raises(BrokerError, match="no group `stock` on `orders`"):
        broker.consume([ORDERS])


async def test_a_closed_consumer_says_so() -> None:
    broker = open_backend("memory://", clock=SYSTEM_CLOCK).broker
    await broker.declare([ORDERS])
    consumer = broker.consume([ORDERS])
    await broker.close()

    with pytest.raises(NotConnected, match="closed"):
        await consumer.fetch({ORDERS: 1})


async def test_an_idle_fetch_wakes_for_nothing() -> None:
    clock = VirtualClock()
    broker = open_backend("memory://", clock=clock).broker
    await broker.declare([ORDERS])
    fetch = asyncio.create_task(broker.consume([ORDERS]).fetch({ORDERS: 1}))
    for _ in range(5):
        await asyncio.sleep(0)

    assert clock.next_due() is None, "it waits for a publish, not for a time"

    fetch.cancel()
    await asyncio.gather(fetch, return_exceptions=True)


async def test_a_fetch_waits_for_the_end_of_no_lease_that_is_settled() -> None:
    clock = VirtualClock()
    broker = open_backend("memory://", clock=clock).broker
    await broker.declare([ORDERS])
    consumer = broker.consume([ORDERS])
    await broker.publish([message()])
    (delivery,) = await consumer.fetch({ORDERS: 1})
    fetch = asyncio.create_task(consumer.fetch({ORDERS: 1}))
    for _ in range(5):
        await asyncio.sleep(0)
    assert clock.next_due() == clock.time() + ORDERS.lease

    await consumer.settle([Outcome(delivery, Action.ACK)])
    for _ in range(5):
        await asyncio.sleep(0)

    assert clock.next_due() is None
    fetch.cancel()
    await asyncio.gather(fetch, return_exceptions=True)


async def test_a_fetch_sleeps_until_exactly_what_is_due_next() -> None:
    clock = VirtualClock()
    broker = open_backend("memory://", clock=clock).broker
    await broker.declare([ORDERS])
    consumer = broker.consume([ORDERS])
    await broker.publish([message()])
    (delivery,) = await consumer.fetch({ORDERS: 1})
    await consumer.settle([Outcome(delivery, Action.RETRY, delay=86_400)])
    start = clock.time()
    fetch = asyncio.create_task(consumer.fetch({ORDERS: 1}))
    for _ in range(5):
        await asyncio.sleep(0)

    assert clock.next_due() == start + 86_400
    clock.advance_to(start + 86_400)
    (again,) = await fetch

    assert again.message.attempt == 2


async def test_what_is_settled_leaves_nothing_behind() -> None:
    queue = Queue(Subscription("orders", "stock", ordered=True, lease=3_600))
    for number in range(1, 20_001):
        queue.add(Row(number, number, message(key=f"key-{number % 100}"), 0.0, 0.0))
        (delivery,) = queue.claim(1, 0.0)
        row = queue.held(delivery)
        assert row is not None
        queue.remove(row)

    assert (queue.rows, queue._keys) == ({}, {})
    assert len(queue._due) < 3_000, "the lease ends of settled messages pile up"


async def test_sets_that_have_expired_leave_nothing_and_each_add_prolongs() -> None:
    clock = VirtualClock()
    joins = State(clock).joins
    for number in range(3):
        assert not joins.make(Join("set", f"member-{number}", "actor", 5, ttl=10))
        clock.advance_to(clock.time() + 6)
    assert joins.make(Join("full", "member", "actor", 1, ttl=10))
    assert not joins.make(Join("kept", "member", "actor", 2))
    assert {*joins._sets} == {"set", "full", "kept"}

    clock.advance_to(clock.time() + 10)

    assert joins.make(Join("kept", "another", "actor", 2))
    assert ({*joins._sets}, joins._expiries) == ({"kept"}, [])


async def test_a_wait_for_the_store_leaves_nothing_behind_and_ends_when_it_is_closed() -> None:
    backend = open_backend("memory://", clock=VirtualClock())
    cancelled, waiting = (asyncio.ensure_future(backend.store.changed({"a": 0, "b": 0})) for _ in range(2))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)

    await backend.broker.close()

    with pytest.raises(NotConnected, match="closed"):
        await waiting
    assert not backend.store._entries._watchers
