"""More than one of it: brokers on one loop, apps on several loops and threads, and processes that fork."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import pytest

from carteiro import Carteiro
from carteiro.message import Action
from carteiro.ports.broker import Consumer
from tests.redis.stage import (
    ORDERS,
    Handled,
    backend,
    connected,
    outgoing,
    passes,
    settle,
    shop,
    soon,
    take,
    until,
    working,
)
from tests.servers.redis import RedisServer

pytestmark = pytest.mark.needs("redis")


async def test_two_brokers_on_one_loop_work_and_close_each_for_itself(redis_url: str):
    async with connected(redis_url, ORDERS) as one:
        async with connected(redis_url) as other:
            await other.publish([outgoing(b"1")])
            consumer = one.consume([ORDERS])
            await settle(consumer, await take(consumer))
        await passes(one)


async def test_two_apps_on_one_loop_share_their_messages(redis_url: str):
    handled = Handled()
    apps = [shop(redis_url, handled) for _ in range(2)]
    async with working(apps[0]), working(apps[1]):
        for start in range(0, 500, 50):
            numbers = range(start, start + 50)
            await asyncio.gather(*(apps[number % 2].publish("orders", number) for number in numbers))
        await handled.all_of(range(500))
    assert handled.counts.total() == 500


async def test_a_broker_that_closes_under_load_leaves_what_was_acknowledged(redis_url: str):
    async with connected(redis_url, ORDERS) as staying:
        leaving = backend(redis_url).broker
        await leaving.connect()
        acknowledged: list[bytes] = []

        async def publish(number: int) -> None:
            body = b"%d" % number
            await leaving.publish([outgoing(body)])
            acknowledged.append(body)

        publishing = [asyncio.create_task(publish(number)) for number in range(100)]
        consumers = [leaving.consume([ORDERS]) for _ in range(3)]
        fetching = [asyncio.create_task(consumer.fetch({ORDERS: 1})) for consumer in consumers]
        await asyncio.wait(publishing, return_when=asyncio.FIRST_COMPLETED)
        await soon(leaving.close())
        await soon(asyncio.gather(*publishing, *fetching, return_exceptions=True))
        (status,) = await staying.groups()
        assert status.left >= len(acknowledged)
        assert status.consumers == 0


def test_publishing_from_many_threads_without_a_loop_arrives(redis_url: str):
    app = shop(redis_url, Handled())
    threads = [
        threading.Thread(target=lambda start=start: [app.publish_sync("orders", start + n) for n in range(25)])
        for start in range(0, 200, 25)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    app.publish_many_sync("orders", range(200, 300))
    assert asyncio.run(handled_by(redis_url, 300)) == list(range(300))
    app._sync._close()


def test_an_app_is_published_to_from_one_loop_after_another(redis_url: str):
    app = shop(redis_url, Handled())

    async def publish(number: int) -> None:
        async with app:
            await app.publish("orders", number)

    for number in range(3):
        asyncio.run(publish(number))
    assert asyncio.run(handled_by(redis_url, 3)) == [0, 1, 2]


async def test_threads_publish_by_the_loop_on_which_the_app_works(redis_url: str):
    handled = Handled()
    app = shop(redis_url, handled)
    async with working(app):
        await asyncio.gather(*(asyncio.to_thread(app.publish_sync, "orders", number) for number in range(50)))
        await handled.all_of(range(50))


def test_a_fork_has_a_connection_of_its_own(redis_url: str):
    app = shop(redis_url, Handled())
    app.publish_sync("orders", 0)
    children = [fork(lambda number=number: app.publish_sync("orders", number)) for number in range(1, 4)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    app.publish_sync("orders", 4)
    assert asyncio.run(handled_by(redis_url, 5)) == [0, 1, 2, 3, 4]
    app._sync._close()


def test_a_backend_that_was_made_before_a_fork_loses_nothing_in_its_children(redis_url: str):
    shared = backend(redis_url)

    def publish() -> None:
        async def all_of_them() -> None:
            await shared.broker.connect()
            await shared.broker.declare([ORDERS])
            await shared.broker.publish([outgoing(b"%d" % number) for number in range(10)])
            await shared.broker.close()

        asyncio.run(all_of_them())

    children = [fork(publish) for _ in range(3)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    assert asyncio.run(handled_by(redis_url, 30)) == sorted(list(range(10)) * 3)


def fork(work) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


async def handled_by(url: str, count: int) -> list[int]:
    """What a worker finds in `orders`, in the order of their numbers."""
    async with connected(url, ORDERS) as broker:
        consumer = broker.consume([ORDERS])
        taken = await take(consumer, count)
        assert await settle(consumer, taken) == []
        (status,) = await broker.groups()
        assert (status.waiting, status.in_flight) == (0, 0)
        return sorted(int(one.message.body) for one in taken)


# -- handing over -----------------------------------------------------------------------------------------------------


async def test_nothing_is_handed_to_a_consumer_that_fetches_no_more():
    """Its fetch has ended: by a cancel, with the server having forgotten its scripts, or with its connection."""
    with RedisServer() as server:
        async with connected(server.url, ORDERS) as one, connected(server.url) as other:

            async def waits(consumer: Consumer) -> asyncio.Future[Any]:
                fetching = asyncio.ensure_future(consumer.fetch({ORDERS: 10}))
                await until(lambda: asyncio.to_thread(server.says, "HLEN", "{carteiro}:orders [shop]:waiting"))
                return fetching

            async def is_free(body: bytes) -> None:
                await other.publish([outgoing(body)])
                (delivery,) = await take(other_consumer)
                assert delivery.message.body == body
                await settle(other_consumer, [delivery])

            consumer, other_consumer = one.consume([ORDERS]), other.consume([ORDERS])
            fetching = await waits(consumer)
            server.says("SCRIPT", "FLUSH")
            fetching.cancel()
            await until(lambda: asyncio.to_thread(lambda: not server.says("HLEN", "{carteiro}:orders [shop]:waiting")))
            await is_free(b"after a cancel")

            fetching = await waits(consumer)
            one._server.link._wire.abort("cut")  # type: ignore[union-attr]
            await asyncio.wait([fetching])
            assert fetching.exception() is not None
            await one.groups()  # by a new connection
            await is_free(b"after a cut")


async def test_what_was_handed_over_and_not_fetched_is_given_back_when_the_consumer_closes(redis_url: str):
    async with connected(redis_url, ORDERS) as one, connected(redis_url) as other:
        consumer = one.consume([ORDERS])
        fetching = asyncio.ensure_future(consumer.fetch({ORDERS: 1}))
        await one.groups()
        await other.publish([outgoing(b"given")])
        fetching.cancel()
        await asyncio.wait([fetching])
        if not fetching.cancelled():  # it was faster
            await settle(consumer, fetching.result(), Action.RELEASE)
        await consumer.close()
        again = other.consume([ORDERS])
        (delivery,) = await take(again)
        assert (delivery.message.body, delivery.message.attempt) == (b"given", 1)
        await settle(again, [delivery])


async def test_an_app_whose_broker_object_is_opened_again_works(redis_url: str):
    made = backend(redis_url)
    handled = Handled()
    for number in range(2):
        app = Carteiro("shop", made)
        app.subscriber("orders")(handled.note)
        async with working(app):
            await app.publish("orders", number)
            await handled.all_of([number])
