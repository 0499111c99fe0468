"""What a process has declared and the server has no more: lost is restored, removed is not."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from carteiro import BrokerError, BrokerUnavailable
from carteiro.backends.redis import RedisBroker
from carteiro.backends.redis.consumer import RedisConsumer
from carteiro.backends.redis.mishaps import Stale
from carteiro.message import Retention, Subscription
from carteiro.testing.clock import VirtualClock
from tests.redis.stage import ORDERS, connected, outgoing, patiently, settle, soon, take, until
from tests.servers.redis import RedisServer

pytestmark = pytest.mark.needs("redis")

EARLIEST = Subscription("orders", "shop", lease=60.0, start="earliest")


@pytest.fixture
def server():
    with RedisServer() as running:
        yield running


async def groups(broker: RedisBroker) -> list[str]:
    return [status.group for status in await patiently(broker.groups)]


async def has(broker: RedisBroker, group: str) -> bool:
    return group in await groups(broker)


async def cut(broker: RedisBroker) -> None:
    """Its connection breaks."""
    wire = broker._server.link._wire
    assert wire is not None
    wire.abort("cut")


async def refused(consumer: RedisConsumer, subscription: Subscription) -> str:
    """What its fetch says that is no outage."""
    with pytest.raises(BrokerError) as caught:
        await patiently(lambda: soon(consumer.fetch({subscription: 1})))
    return str(caught.value)


def lose(server: RedisServer, queue: str) -> None:
    """As after a failover to a replica that had not heard of it yet: under the same epoch."""
    server.says("HDEL", "{carteiro}:routes", queue)
    server.says("HSET", "{carteiro}:meta", "version", "older")


# -- what an operator removes -----------------------------------------------------------------------------------------


async def test_a_removed_group_stays_away_when_a_process_that_subscribes_connects_anew(server: RedisServer):
    async with connected(server.url) as worker, connected(server.url) as operator:
        await worker.declare([EARLIEST], [Retention("orders", 3600.0)])
        await operator.publish([outgoing(b"handled long ago")])
        consumer = worker.consume([EARLIEST])
        await settle(consumer, await take(consumer))
        await operator.remove_group("orders", "shop")
        assert "declare it first" in await refused(consumer, EARLIEST)

        for _ in range(2):
            await cut(worker)
            assert "declare it first" in await refused(consumer, EARLIEST)
            await worker._keeper._beat()
            assert await groups(operator) == []


async def test_a_removed_group_is_there_again_when_a_process_that_subscribes_starts(server: RedisServer):
    async with connected(server.url, ORDERS) as operator:
        await operator.remove_group("orders", "shop")
        async with connected(server.url, ORDERS) as worker:
            consumer = worker.consume([ORDERS])
            await cut(worker)
            await patiently(lambda: operator.publish([outgoing(b"new")]))
            assert [one.message.body for one in await take(consumer)] == [b"new"]
        assert server.says("HLEN", "{carteiro}:removed") == 0


async def test_that_a_group_was_removed_is_known_for_a_day():
    clock = VirtualClock()
    with RedisServer() as server:
        async with connected(server.url, ORDERS, clock=clock) as broker:
            await broker.remove_group("orders", "shop")
            clock.advance_to(clock.time() + 86_000)
            await broker._keeper._beat()
            assert server.says("HKEYS", "{carteiro}:removed") == ["{carteiro}:orders [shop]"]
            clock.advance_to(clock.time() + 500)
            await broker._keeper._beat()
            assert server.says("EXISTS", "{carteiro}:removed") == 0


async def test_a_broadcast_group_that_its_process_closes_leaves_no_mark(server: RedisServer):
    news = Subscription("news", "process-1", ephemeral=True, lease=60.0)
    async with connected(server.url, news) as broker:
        await broker.consume([news]).close()
        assert await groups(broker) == []
    assert server.says("EXISTS", "{carteiro}:removed") == 0


# -- what the server loses --------------------------------------------------------------------------------------------


async def test_a_group_that_was_lost_with_the_connection_is_there_again(server: RedisServer):
    async with connected(server.url) as worker, connected(server.url) as other:
        await worker.declare([EARLIEST], [Retention("orders", 3600.0)])
        await other.publish([outgoing(b"handled long ago")])
        consumer = worker.consume([EARLIEST])
        await settle(consumer, await take(consumer))
        lose(server, "{carteiro}:orders [shop]")
        await cut(worker)
        fetching = asyncio.ensure_future(take(consumer))
        await until(lambda: groups(other))
        await other.publish([outgoing(b"new")])
        assert [one.message.body for one in await soon(fetching)] == [b"new"], "nothing is handled a second time"


async def test_a_group_that_a_fetch_finds_lost_is_there_again_at_once(server: RedisServer):
    """Over the same connection: a process that was frozen for longer than it may be silent has lost its broadcasts."""
    news = Subscription("news", "process-1", ephemeral=True, lease=60.0)
    async with connected(server.url, ORDERS, news) as worker, connected(server.url) as other:
        await worker._keeper.stop()
        consumer = worker.consume([ORDERS, news])
        for subscription in (ORDERS, news):
            lose(server, f"{{carteiro}}:{subscription}")
            consumer.heat()
            fetching = asyncio.ensure_future(consumer.fetch({subscription: 1}))
            await until(partial(has, other, subscription.group))
            other._server.forget_routes()
            await other.publish([outgoing(b"hello", subscription.topic)])
            await settle(consumer, await soon(fetching))


# -- an outage --------------------------------------------------------------------------------------------------------


async def test_an_outage_longer_than_a_process_may_be_silent_takes_nobodys_broadcasts():
    clock = VirtualClock()
    with RedisServer() as server:
        async with connected(server.url, clock=clock) as one, connected(server.url, clock=clock) as other:
            for broker in (one, other):
                await broker._keeper.stop()
            ours = Subscription("news", "process-1", ephemeral=True, lease=60.0)
            theirs = Subscription("news", "process-2", ephemeral=True, lease=60.0)
            await one.declare([ours])
            await other.declare([theirs])
            consumer = other.consume([theirs])
            for broker in (one, other):
                await broker._keeper._beat()
            await one.publish([outgoing(b"before the outage", "news")])

            clock.advance_to(clock.time() + 90)
            await one._keeper._beat()
            status = next(status for status in await one.groups() if status.group == "process-2")
            assert (status.waiting, status.consumers) == (1, 1)
            await other._keeper._beat()
            (delivery,) = await take(consumer, 1, theirs)
            assert delivery.message.body == b"before the outage"


async def test_broadcasts_of_a_process_that_is_silent_while_others_are_not_are_removed():
    clock = VirtualClock()
    with RedisServer() as server:
        async with connected(server.url, clock=clock) as one, connected(server.url, clock=clock) as silent:
            for broker in (one, silent):
                await broker._keeper.stop()
            await silent.declare([Subscription("news", "process-2", ephemeral=True, lease=60.0)])
            await one._keeper._beat()
            for _ in range(3):
                assert await groups(one) == ["process-2"]
                clock.advance_to(clock.time() + 10)
                await one._keeper._beat()
            assert await groups(one) == []


# -- routes that do not stand still -----------------------------------------------------------------------------------


async def test_routes_that_change_faster_than_they_are_read_end_in_an_error(server: RedisServer):
    async with connected(server.url, ORDERS) as broker:
        run = broker._server.run

        async def always_stale(script, *request, **options):
            if script.name in ("declare", "settle"):
                raise Stale("STALE")
            return await run(script, *request, **options)

        await broker.publish([outgoing(b"order")])
        consumer = broker.consume([ORDERS])
        taken = await take(consumer)
        broker._server.run = always_stale  # type: ignore[method-assign]
        with pytest.raises(BrokerUnavailable, match="change faster"):
            await soon(broker.declare([ORDERS]))
        with pytest.raises(BrokerUnavailable, match="change faster"):
            await settle(consumer, taken, emits=[outgoing(b"more", "other")])
        broker._server.run = run  # type: ignore[method-assign]
