"""A server that is killed, frozen or cut off: calls end in clear errors, and everything goes on when it is back."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Iterator

import pytest

from carteiro import BrokerUnavailable, Carteiro, NotConnected
from carteiro.message import Subscription
from carteiro.testing.clock import VirtualClock
from tests.redis.stage import (
    ORDERS,
    Handled,
    backend,
    connected,
    outgoing,
    passes,
    patiently,
    settle,
    shop,
    soon,
    take,
    until,
    working,
)
from tests.servers.process import free_port
from tests.servers.proxy import Proxy
from tests.servers.redis import RedisServer, with_query

pytestmark = pytest.mark.needs("redis")


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer(aof="always") as started:
        yield started


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    with Proxy(redis_server.port) as started:
        yield started


@pytest.fixture
def through(redis_url: str, redis_server: RedisServer, proxy: Proxy) -> str:
    """The session's server by way of the proxy, with a prefix of the test's own."""
    return redis_url.replace(f":{redis_server.port}/", f":{proxy.port}/")


# -- killed -----------------------------------------------------------------------------------------------------------


async def test_what_was_acknowledged_before_a_kill_is_handled_after_it(server: RedisServer):
    handled = Handled()
    app = shop(server.url, handled, lease=1.0, publish_timeout=30)
    published: list[int] = []

    async def publish() -> None:
        for start in range(0, 2000, 20):
            await asyncio.gather(*(app.publish("orders", number) for number in range(start, start + 20)))
            published.extend(range(start, start + 20))
            if start == 400:
                killed.set()
                await back.wait()

    killed, back = asyncio.Event(), asyncio.Event()
    async with working(app):
        publishing = asyncio.create_task(publish())
        await killed.wait()
        server.kill()
        with pytest.raises(BrokerUnavailable, match=r"cannot be reached|is lost"):
            await app.connection.broker.publish([outgoing(b"0")])
        back.set()
        server.start()
        await soon(publishing)
        await handled.all_of(published)
        await until(lambda: _is_done(app))
    assert len(published) == 2000


async def _is_done(app: Carteiro) -> bool:
    broker = app.connection.broker
    (status,) = await broker.groups()  # type: ignore[attr-defined]
    return (status.waiting, status.in_flight, status.retrying, status.dead) == (0, 0, 0, 0)


async def _cut(proxy: Proxy, times: int) -> bool:
    return proxy.cuts >= times


async def test_a_publish_waits_for_its_timeout_and_then_raises(server: RedisServer):
    app = shop(server.url, Handled(), publish_timeout=0.3)
    async with app:
        server.kill()
        with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{server.port}"):
            await app.publish("orders", 1)


async def test_a_worker_stops_in_good_order_while_its_server_is_away(server: RedisServer):
    app = shop(server.url, Handled(), grace=0.1)
    async with working(app):
        server.kill()


async def test_a_group_that_a_restart_has_forgotten_is_declared_again(server: RedisServer):
    """As with an AOF that is synced each second, or with a replica that lags behind."""
    async with connected(server.url, ORDERS) as broker:
        server.stop()
        older = server.folder / "older"
        shutil.copytree(server.folder / "appendonlydir", older)
        server.start()
        news = Subscription("news", "shop", lease=60.0)
        await patiently(lambda: broker.declare([news]))
        consumer = broker.consume([ORDERS, news])

        server.kill()
        shutil.rmtree(server.folder / "appendonlydir")
        shutil.copytree(older, server.folder / "appendonlydir")
        server.start()

        fetching = asyncio.create_task(patiently(lambda: consumer.fetch({ORDERS: 1, news: 1})))
        await until(lambda: _gets_it(broker, "news"))
        await settle(consumer, await soon(fetching))


async def _gets_it(broker, topic: str) -> bool:
    return not await patiently(lambda: broker.publish([outgoing(topic=topic)]))


async def test_a_server_that_comes_back_without_its_data_has_the_groups_again():
    handled = Handled()
    with RedisServer() as server:
        app = shop(server.url, handled)
        async with working(app):
            await app.publish("orders", 1)
            await handled.all_of([1])
            server.kill()
            server.start()
            await app.publish("orders", 2, mandatory=True)
            await handled.all_of([2])


# -- frozen -----------------------------------------------------------------------------------------------------------


async def test_a_frozen_server_is_given_up_by_every_call_and_works_on_when_it_thaws(server: RedisServer):
    url = with_query(server.url, timeout="0.3", connect_timeout="0.3")
    async with connected(url, ORDERS) as broker:
        consumer = broker.consume([ORDERS])
        await broker.publish([outgoing(b"before")])
        held = await take(consumer)
        idle = asyncio.ensure_future(consumer.fetch({ORDERS: 1}))
        await asyncio.sleep(0)
        server.freeze()
        calls = [broker.publish([outgoing(b"frozen")]), settle(consumer, held), consumer.renew(held), idle]
        for error in await soon(asyncio.gather(*calls, return_exceptions=True)):
            assert isinstance(error, BrokerUnavailable)
            assert "no answer for 0.3 s" in str(error) or "is lost" in str(error)
        with pytest.raises(BrokerUnavailable, match=r"gives no answer within 0.3 s: is it up"):
            await broker.publish([outgoing(b"frozen")])
        server.thaw()
        await patiently(lambda: broker.publish([outgoing(b"after")]))
        while (await take(consumer))[0].message.body != b"after":
            pass


async def test_a_call_on_a_new_connection_is_watched_too(redis_server: RedisServer, through: str, proxy: Proxy):
    async with connected(with_query(through, timeout="0.3"), ORDERS) as broker:
        await broker.publish([outgoing()])
        proxy.cut()
        await patiently(lambda: broker.publish([outgoing()]))
        proxy.stall()
        with pytest.raises(BrokerUnavailable, match=r"no answer for 0.3 s"):
            await soon(broker.publish([outgoing()]))
        proxy.heal()


# -- cut off ----------------------------------------------------------------------------------------------------------


async def test_an_idle_consumer_is_woken_by_what_is_published_after_a_cut(redis_url: str, through: str, proxy: Proxy):
    """Its clock stands still, so that no beat can help it."""
    clock = VirtualClock()
    async with (
        connected(through, ORDERS, clock=clock) as broker,
        connected(redis_url, clock=clock) as publisher,
    ):
        consumer = broker.consume([ORDERS])
        idle = asyncio.ensure_future(consumer.fetch({ORDERS: 1}))
        for body in (b"one", b"two"):
            await until(lambda: _waits(publisher, consumer))
            assert proxy.cut() == 1
            with pytest.raises(BrokerUnavailable, match="is lost"):
                await soon(idle)
            idle = asyncio.ensure_future(consumer.fetch({ORDERS: 1}))
            await until(lambda: _waits(publisher, consumer))
            await publisher.publish([outgoing(body)])
            (delivery,) = await soon(idle)
            assert delivery.message.body == body
            await settle(consumer, [delivery])
            idle = asyncio.ensure_future(consumer.fetch({ORDERS: 1}))
        idle.cancel()


async def _waits(broker, consumer) -> bool:
    """Whether the server knows that it does, on the connection that it has now."""
    server = broker._server
    entry = await server.link.command("HGET", f"{server.queue(ORDERS)}:waiting", consumer.id)
    return entry is not None and consumer._channel.encode() in entry


async def test_a_worker_goes_on_through_cuts_at_random_and_loses_nothing(through: str, proxy: Proxy):
    handled = Handled()
    # On a busy machine every try may meet a cut: it is not for the breaker to give up, and then the line holds.
    app = shop(through, handled, lease=1.0, breaker=None)

    async def heal() -> None:
        await until(lambda: _cut(proxy, 12))
        proxy.heal()

    async with working(app):
        proxy.cut_at_random(every=0.05, seed=7)
        healing = asyncio.ensure_future(heal())
        for start in range(0, 3000, 100):
            await asyncio.gather(*(app.publish("orders", number) for number in range(start, start + 100)))
        healing.cancel()
        proxy.heal()
        await handled.all_of(range(3000))
        await until(lambda: _is_done(app))
    assert proxy.cuts > 0


async def test_a_server_that_refuses_connections_for_a_while_is_found_again(through: str, proxy: Proxy):
    async with connected(through, ORDERS) as broker:
        proxy.refuse()
        proxy.cut()
        for _ in range(2):
            with pytest.raises(BrokerUnavailable, match=r"is lost|cannot be reached"):
                await broker.publish([outgoing()])
        proxy.heal()
        await passes(broker)


# -- closed meanwhile -------------------------------------------------------------------------------------------------


async def test_closing_ends_the_calls_that_are_under_way_and_says_why(server: RedisServer):
    broker = backend(with_query(server.url, timeout="60")).broker
    await broker.connect()
    await broker.declare([ORDERS])
    server.freeze()
    calls = [asyncio.ensure_future(broker.publish([outgoing()])) for _ in range(3)]
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(broker.close())
    await asyncio.sleep(0)
    server.thaw()
    await soon(closing)
    for result in await soon(asyncio.gather(*calls, return_exceptions=True)):
        assert result == [] or isinstance(result, NotConnected) or "the broker was closed meanwhile" in str(result)
    with pytest.raises(NotConnected):
        await broker.publish([outgoing()])


async def test_closing_ends_the_calls_that_wait_for_a_connection(server: RedisServer):
    broker = backend(server.url).broker
    await broker.connect()
    await broker.declare([ORDERS])
    server.freeze()
    broker._server.link._wire.abort("cut")  # type: ignore[union-attr]
    with pytest.raises(BrokerUnavailable):
        await broker.publish([outgoing()])
    call = asyncio.ensure_future(broker.publish([outgoing()]))
    await asyncio.sleep(0)
    await soon(broker.close())
    with pytest.raises(NotConnected, match="was closed while it was being connected"):
        await call


async def test_a_connect_that_is_cancelled_leaves_no_connection_behind(server: RedisServer):
    broker = backend(server.url).broker
    server.freeze()
    connecting = asyncio.ensure_future(broker.connect())
    await asyncio.sleep(0.01)
    connecting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await connecting
    server.thaw()
    await until(lambda: asyncio.to_thread(_has_no_clients, server))


def _has_no_clients(server: RedisServer) -> bool:
    return len(server.says("CLIENT LIST")) == 1  # who asks


async def test_an_app_can_be_opened_again_after_its_server_was_not_there():
    with RedisServer() as server:
        server.kill()
        app = shop(server.url, Handled())
        with pytest.raises(BrokerUnavailable, match="start the server"):
            async with app:
                pass
        server.start()
        async with app:
            await app.publish("orders", 1, mandatory=True)


async def test_connecting_to_nobody_can_be_tried_again():
    broker = backend(f"redis://127.0.0.1:{free_port()}").broker
    for _ in range(2):
        with pytest.raises(BrokerUnavailable):
            await broker.connect()
    with pytest.raises(NotConnected):
        await broker.publish([outgoing()])
