"""The dedupe window that a store keeps for a broker that has none."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from carteiro.backends.memory import open_backend
from carteiro.engine.ids import Ids
from carteiro.errors import BrokerUnavailable
from carteiro.message import NO_HEADERS, Outgoing, Write
from carteiro.ports.store import Store
from carteiro.testing import VirtualClock


class Forgetful:
    """A broker that takes everything, and remembers only what it was given."""

    def __init__(self) -> None:
        self.taken: list[Outgoing] = []
        self.away = False
        self.held: asyncio.Event | None = None
        self.asked = asyncio.Event()

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        assert all(message.dedupe is None for message in messages), "it knows no ids"
        self.asked.set()
        if self.held is not None:
            await self.held.wait()
        if self.away:
            raise BrokerUnavailable("it is away")
        self.taken += messages
        return [message for message in messages if message.topic == "nobody"]

    @property
    def bodies(self) -> list[bytes]:
        return [message.body for message in self.taken]


def message(id: str, body: bytes, topic: str = "orders", dedupe: float | None = 120.0) -> Outgoing:
    return Outgoing(id, topic, body, None, NO_HEADERS, id, dedupe=dedupe)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def broker() -> Forgetful:
    return Forgetful()


@pytest.fixture
async def store(clock: VirtualClock) -> Store:
    store = open_backend("memory://", clock=clock).store
    assert store is not None
    await store.connect()
    return store


@pytest.fixture
def ids(store: Store, clock: VirtualClock) -> Ids:
    async def opened() -> Store:
        return store

    return Ids(opened, "memory://", clock, timeout=5)


async def test_a_second_message_with_the_id_is_dropped_within_the_window(
    ids: Ids, broker: Forgetful, clock: VirtualClock
):
    for body in (b"first", b"second"):
        assert not await ids.publish([message("7", body)], broker.publish)
    assert broker.bodies == [b"first"]

    clock.advance_to(clock.time() + 121)
    await ids.publish([message("7", b"after the window")], broker.publish)
    assert broker.bodies == [b"first", b"after the window"]


async def test_a_second_one_of_the_same_call_is_dropped_and_the_order_stays(ids: Ids, broker: Forgetful):
    await ids.publish(
        [message("1", b"a"), message("2", b"b", dedupe=None), message("1", b"c"), message("3", b"d")], broker.publish
    )

    assert broker.bodies == [b"a", b"b", b"d"]


async def test_another_topic_has_a_window_of_its_own(ids: Ids, broker: Forgetful):
    await ids.publish([message("7", b"order"), message("7", b"invoice", topic="invoices")], broker.publish)

    assert broker.bodies == [b"order", b"invoice"]


async def test_what_no_group_got_can_be_published_again(ids: Ids, broker: Forgetful):
    for _ in range(2):
        assert [one.body for one in await ids.publish([message("7", b"x", topic="nobody")], broker.publish)] == [b"x"]
    assert broker.bodies == [b"x", b"x"]


async def test_what_could_not_be_published_can_be_tried_again_with_the_same_object(ids: Ids, broker: Forgetful):
    order = message("7", b"order")
    broker.away = True
    with pytest.raises(BrokerUnavailable):
        await ids.publish([order], broker.publish)

    broker.away = False
    await ids.publish([order], broker.publish)
    assert broker.bodies == [b"order"]


async def test_two_at_once_publish_each_id_once_in_whatever_order_they_claim(
    ids: Ids, broker: Forgetful, clock: VirtualClock
):
    broker.held = asyncio.Event()
    calls = [
        asyncio.create_task(ids.publish([message("1", b"1"), message("2", b"2")], broker.publish)),
        asyncio.create_task(ids.publish([message("2", b"2"), message("3", b"3"), message("1", b"1")], broker.publish)),
    ]
    await asyncio.wait(calls, timeout=0)
    broker.held.set()

    async with asyncio.timeout(10):
        while not all(call.done() for call in calls):
            clock.advance_to(clock.time() + 0.1)
            await asyncio.sleep(0)

    assert sorted(broker.bodies) == [b"1", b"2", b"3"]


async def test_the_claim_of_a_publisher_that_died_ends_by_itself(
    ids: Ids, broker: Forgetful, store: Store, clock: VirtualClock
):
    await store.write([Write("published:memory://:orders:7", b"claimed", ttl=3)])
    publishing = asyncio.create_task(ids.publish([message("7", b"order")], broker.publish))

    await passing(clock, publishing)

    assert broker.bodies == [b"order"]


async def test_a_claim_that_stays_is_waited_for_as_long_as_a_publish_may_take(
    ids: Ids, broker: Forgetful, store: Store, clock: VirtualClock
):
    await store.write([Write("published:memory://:orders:7", b"claimed", ttl=60)])
    publishing = asyncio.create_task(ids.publish([message("7", b"order"), message("8", b"other")], broker.publish))

    await passing(clock, publishing)

    with pytest.raises(BrokerUnavailable, match=r"another publisher has claimed the id `7` of `orders`.* in 5 s"):
        await publishing
    assert broker.bodies == [b"other"], "what nobody else has claimed goes out"


async def test_a_publish_that_is_cancelled_is_marked_all_the_same(ids: Ids, broker: Forgetful):
    broker.held = asyncio.Event()
    giving_up = asyncio.create_task(ids.publish([message("7", b"order")], broker.publish))
    await broker.asked.wait()
    giving_up.cancel()
    await asyncio.wait([giving_up])
    broker.held.set()
    await ids.finish()

    await ids.publish([message("7", b"again")], broker.publish)

    assert broker.bodies == [b"order"]


async def test_a_store_that_is_away_is_named_and_publishes_nothing(broker: Forgetful, clock: VirtualClock):
    async def opened() -> Store:
        return Away()  # type: ignore[return-value]

    with pytest.raises(BrokerUnavailable, match="the store that keeps the ids of what was published: no disk"):
        await Ids(opened, "memory://", clock, timeout=5).publish([message("7", b"order")], broker.publish)
    assert broker.bodies == []


class Away:
    """A store that cannot be asked."""

    async def write(self, writes: Sequence[Write]) -> Sequence[bool]:
        raise BrokerUnavailable("no disk")


async def passing(clock: VirtualClock, task: asyncio.Task[list[Outgoing]]) -> None:
    """Let time pass until it is done."""
    async with asyncio.timeout(10):
        while not task.done():
            clock.advance_to(clock.time() + 0.5)
            await asyncio.sleep(0)
