"""The beat: what it clears, in steps that are short; and who is known to consume."""

from __future__ import annotations

import asyncio

import pytest

from carteiro.backends.redis import scripts
from carteiro.backends.redis.publishing import micros
from carteiro.backends.redis.server import LIFETIME
from carteiro.message import Action, Outcome, Retention, Subscription
from carteiro.testing.clock import VirtualClock
from tests.redis.stage import ORDERS, connected, outgoing, settle, soon, take, until
from tests.servers.redis import RedisServer

pytestmark = pytest.mark.needs("redis")


async def test_marks_that_have_passed_go_as_new_ones_come():
    clock = VirtualClock()
    with RedisServer() as server:
        async with connected(server.url, ORDERS, clock=clock) as broker:
            await broker._keeper.stop()
            for _ in range(10):
                await broker.publish([outgoing(dedupe=5.0) for _ in range(100)])
                clock.advance_to(clock.time() + 3)
            assert server.says("ZCARD", "{carteiro}:marks") <= 300, "of the last window, and a little more"


async def test_a_beat_takes_short_steps_until_all_that_has_passed_is_cleared():
    clock = VirtualClock()
    with RedisServer() as server:
        async with connected(server.url, clock=clock) as broker:
            await broker._keeper.stop()
            await broker.declare([], [Retention("orders", 60.0)])
            for _ in range(6):
                await broker.publish([outgoing(b"x" * 50, dedupe=60.0) for _ in range(4000)])
            await broker.publish([outgoing(b"last of the old", dedupe=60.0)])
            clock.advance_to(clock.time() + 50)
            await broker.publish([outgoing(b"kept", dedupe=60.0)])
            clock.advance_to(clock.time() + 20)

            _, _, more = await broker._server.run(scripts.BEAT, "a version", micros(LIFETIME), [], [])
            assert more
            assert server.says("XLEN", "{carteiro}:log:orders") >= 24_002 - 2 * 5000
            assert server.says("ZCARD", "{carteiro}:marks") >= 24_002 - 2 * 5000
            await broker._keeper._beat()
            assert server.says("XLEN", "{carteiro}:log:orders") == 1
            assert server.says("ZCARD", "{carteiro}:marks") == 1


async def test_a_consumer_that_comes_during_a_beat_is_known_at_once():
    clock = VirtualClock()
    with RedisServer() as server:
        async with connected(server.url, ORDERS, clock=clock) as broker:
            run, beating, go_on = broker._server.run, asyncio.Event(), asyncio.Event()

            async def held(script, *request, **options):
                answer = await run(script, *request, **options)
                if script is scripts.BEAT:
                    beating.set()
                    await go_on.wait()
                return answer

            broker._server.run = held  # type: ignore[method-assign]
            broker.consume([ORDERS])
            await soon(beating.wait())
            broker.consume([ORDERS])
            go_on.set()
            await until(lambda: asyncio.to_thread(lambda: server.says("ZCARD", "{carteiro}:consumers") == 2))
            broker._server.run = run  # type: ignore[method-assign]


async def test_what_a_cancelled_fetch_has_left_for_too_long_goes_to_others():
    clock = VirtualClock()
    with RedisServer() as server:
        async with connected(server.url, ORDERS, clock=clock) as broker:
            await broker._keeper.stop()
            consumer, other = broker.consume([ORDERS]), broker.consume([ORDERS])
            await broker.publish([outgoing(b"first")])
            await settle(consumer, await take(consumer))  # from here on the server knows the scripts
            await broker.publish([outgoing(b"left")])
            asked, run = asyncio.Event(), broker._server.link.run

            def noted(*request, **options):
                asked.set()
                return run(*request, **options)

            broker._server.link.run = noted  # type: ignore[method-assign]
            fetching = asyncio.ensure_future(consumer.fetch({ORDERS: 1}))
            await soon(asked.wait())
            fetching.cancel()
            await until(lambda: asyncio.sleep(0, consumer._leftover))

            clock.advance_to(clock.time() + ORDERS.lease / 2)
            fetching = asyncio.ensure_future(consumer.fetch({ORDERS: 0}))
            (delivery,) = await take(other)
            assert (delivery.message.body, delivery.message.attempt) == (b"left", 1)
            fetching.cancel()
            await settle(other, [delivery])


async def test_the_groups_are_counted_in_steps_that_are_short():
    many = [Subscription(f"topic.{number}", "shop", lease=60.0) for number in range(60)]
    with RedisServer() as server:
        async with connected(server.url, *many) as broker:
            for one in many:
                await broker.publish([outgoing(topic=one.topic, delay=3600.0) for _ in range(100)])
            consumer = broker.consume(many)
            await broker.publish([outgoing(topic="topic.7") for _ in range(3)])
            taken = await take(consumer, 3, many[7])
            await soon(consumer.settle([Outcome(taken[0], Action.RETRY, delay=60.0)]))
            before = server.says("INFO", "commandstats")["cmdstat_evalsha"]["calls"]
            statuses = {status.topic: status for status in await broker.groups()}
            assert server.says("INFO", "commandstats")["cmdstat_evalsha"]["calls"] - before > 3
            assert [statuses[one.topic].delayed for one in many] == [100] * 60
            found = statuses["topic.7"]
            assert (found.retrying, found.in_flight, found.waiting) == (1, 2, 0)
