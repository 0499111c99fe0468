"""Who wakes whom: a message costs the same however many idle, and yet nobody sleeps past what is visible."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest

from carteiro.backends.redis import RedisBroker
from carteiro.backends.redis.consumer import RedisConsumer
from carteiro.message import Action, Delivery, Outcome, Subscription
from tests.redis.stage import ORDERS, Handled, connected, outgoing, settle, soon, until
from tests.redis.test_economy import calls, settled
from tests.servers.redis import RedisServer

pytestmark = pytest.mark.needs("redis")

QUEUE = "{carteiro}:orders [shop]"


@pytest.fixture
def server():
    with RedisServer() as running:
        yield running


@contextlib.asynccontextmanager
async def crew(server: RedisServer, size: int, *subscriptions: Subscription) -> AsyncIterator[list[RedisBroker]]:
    """Processes that never beat, so that nothing but a wake-up or a time they know makes them look."""
    async with contextlib.AsyncExitStack() as stack:
        brokers = [await stack.enter_async_context(connected(server.url, *subscriptions)) for _ in range(size)]
        for broker in brokers:
            await broker._keeper.stop()
        yield brokers


class Idle:
    """Consumers that wait, each with room for ten."""

    def __init__(self, brokers: Sequence[RedisBroker], subscription: Subscription = ORDERS) -> None:
        self._subscription = subscription
        self.consumers: list[RedisConsumer] = [broker.consume([subscription]) for broker in brokers]
        self._fetches = {self._fetch(one): one for one in self.consumers}

    def _fetch(self, consumer: RedisConsumer) -> asyncio.Future[Sequence[Delivery]]:
        return asyncio.ensure_future(consumer.fetch({self._subscription: 10}))

    async def wait(self, server: RedisServer) -> None:
        await until(lambda: asyncio.to_thread(lambda: waiting(server, self._subscription) == len(self.consumers)))
        await settled(server)

    async def waits(self, server: RedisServer, consumer: RedisConsumer) -> None:
        await until(lambda: asyncio.to_thread(server.says, "HEXISTS", f"{QUEUE}:waiting", consumer.id))

    async def next(self) -> tuple[RedisConsumer, Sequence[Delivery]]:
        """Who gets something first, and what."""
        done, _ = await soon(asyncio.wait(self._fetches, return_when=asyncio.FIRST_COMPLETED))
        fetched = done.pop()
        consumer = self._fetches.pop(fetched)
        return consumer, await fetched

    def again(self, consumer: RedisConsumer) -> None:
        self._fetches[self._fetch(consumer)] = consumer

    async def stop(self, consumer: RedisConsumer) -> None:
        fetch = next(fetch for fetch, one in self._fetches.items() if one is consumer)
        del self._fetches[fetch]
        fetch.cancel()
        await asyncio.wait([fetch])

    async def end(self) -> None:
        for fetch in self._fetches:
            fetch.cancel()
        await asyncio.wait(self._fetches)


def waiting(server: RedisServer, subscription: Subscription = ORDERS) -> int:
    count: int = server.says("HLEN", f"{{carteiro}}:{subscription}:waiting")
    return count


# -- what a message costs ---------------------------------------------------------------------------------------------


async def test_a_message_costs_as_many_calls_with_twenty_idle_processes_as_with_one(server: RedisServer):
    async with crew(server, 20, ORDERS) as brokers:
        idle = Idle(brokers)
        await idle.wait(server)
        before = 0
        for number in range(31):
            if number == 1:
                before = calls(server)  # the first one has sent the scripts
            await brokers[0].publish([outgoing(b"%d" % number)])
            consumer, taken = await idle.next()
            assert await settle(consumer, taken) == []
            idle.again(consumer)
            await until(lambda: asyncio.to_thread(lambda: waiting(server) == 20))
        assert calls(server) - before <= 3 * 30, "publish, ack, and the claim of the one who then waits again"
        await idle.end()


async def test_a_delayed_message_and_a_retry_wake_nobody_before_their_time(server: RedisServer):
    async with crew(server, 10, ORDERS) as brokers:
        idle = Idle(brokers)
        await idle.wait(server)
        await brokers[0].publish([outgoing(b"one"), outgoing(b"two")])
        consumer, (one, two) = await idle.next()
        await settle(consumer, [one], Action.RETRY, delay=3600.0)
        await settled(server)
        before = calls(server)
        await brokers[0].publish([outgoing(b"later", delay=1800.0)])
        await settle(consumer, [two], Action.RETRY, delay=900.0)
        await settled(server)
        assert calls(server) - before == 2
        await idle.end()


# -- and nobody sleeps past what is visible ---------------------------------------------------------------------------


async def test_what_a_process_was_handed_and_never_ended_comes_to_one_that_waits_when_the_lease_ends(
    server: RedisServer,
):
    short = Subscription("orders", "shop", lease=0.3)
    async with crew(server, 4, short) as brokers:
        idle = Idle(brokers, short)
        await idle.wait(server)
        await brokers[0].publish([outgoing(b"orphan")])
        first, _ = await idle.next()
        second, taken = await idle.next()
        assert second is not first
        assert [(one.message.body, one.message.attempt) for one in taken] == [(b"orphan", 2)]
        await settle(second, taken)
        await idle.end()


async def test_a_shorter_lease_after_a_longer_one_is_looked_at_when_it_ends(server: RedisServer):
    long, short = Subscription("orders", "shop", lease=600.0), Subscription("orders", "shop", lease=0.3)
    async with crew(server, 2, long) as (steady, other):
        (slow,) = Idle([steady], long).consumers
        await until(lambda: asyncio.to_thread(lambda: waiting(server) == 1))
        await other.publish([outgoing(b"long")])
        await until(lambda: asyncio.to_thread(lambda: server.says("ZCARD", f"{QUEUE}:leases") == 1))

        hasty = Idle([other], short)
        await hasty.wait(server)
        await steady.publish([outgoing(b"short")])
        consumer, taken = await hasty.next()
        assert [one.message.body for one in taken] == [b"short"]
        hasty.again(consumer)
        _, again = await hasty.next()
        assert [one.message.body for one in again] == [b"short"], "its lease has ended long before the first one"
        await settle(consumer, again)
        await slow.close()


async def test_what_is_too_much_for_those_who_wait_wakes_them_all(server: RedisServer):
    async with crew(server, 3, ORDERS) as brokers:
        idle = Idle(brokers)
        await idle.wait(server)
        await brokers[0].publish([outgoing(b"%d" % number) for number in range(30)])
        bodies: list[bytes] = []
        for _ in range(3):
            consumer, taken = await idle.next()
            bodies += [one.message.body for one in taken]
            await settle(consumer, taken)
        assert sorted(map(int, bodies)) == list(range(30))


# -- who is known to wait ---------------------------------------------------------------------------------------------


async def test_one_that_fetches_no_more_takes_nobody_else_off_the_list(server: RedisServer):
    async with crew(server, 3, ORDERS) as brokers:
        idle = Idle(brokers)
        await idle.wait(server)
        await idle.stop(idle.consumers[1])
        await until(lambda: asyncio.to_thread(lambda: waiting(server) == 2))
        await brokers[0].publish([outgoing(b"hello")])
        consumer, taken = await idle.next()
        assert consumer is not idle.consumers[1]
        await settle(consumer, taken)
        await idle.end()


async def test_one_that_has_died_is_passed_over_and_forgotten(server: RedisServer):
    async with crew(server, 1, ORDERS) as (broker,):
        idle = Idle([broker])
        await idle.wait(server)
        for number in range(3):
            entry = msgspec.msgpack.encode((f"{{carteiro}}:to:dead{number}", "12345678", 10, 60_000_000))
            server.says("HSET", f"{QUEUE}:waiting", f"dead{number}", entry)
        before = calls(server)
        while waiting(server) > 1 or calls(server) == before:
            await broker.publish([outgoing(b"hello")])
            consumer, taken = await idle.next()
            assert [one.message.attempt for one in taken] == [1]
            await settle(consumer, taken)
            idle.again(consumer)
            await idle.waits(server, consumer)
        await idle.end()


async def test_a_process_that_is_gone_is_taken_off_the_list_by_anyones_beat(server: RedisServer):
    async with crew(server, 2, ORDERS) as (dead, living):
        idle = Idle([dead])
        await idle.wait(server)
        await dead._keeper._beat()
        await living._keeper._beat()
        server.says("ZADD", "{carteiro}:consumers", 1, f"{idle.consumers[0].id} {QUEUE}")
        await living._keeper._beat()
        assert waiting(server) == 0
        await idle.end()


async def test_a_consumer_that_is_removed_by_its_process_is_off_the_list(server: RedisServer):
    async with crew(server, 1, ORDERS) as (broker,):
        idle = Idle([broker])
        await idle.wait(server)
        (consumer,) = idle.consumers
        await broker._server.leave([], consumer.listening)
        assert waiting(server) == 0
        await idle.end()


# -- all of it at once ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [False, True], ids=["plain", "ordered"])
@pytest.mark.parametrize("seed", range(3))
async def test_nothing_is_slept_over_while_processes_come_go_and_lose_what_they_took(
    server: RedisServer, seed: int, ordered: bool
):
    """Without beats: a wake-up that is lost would leave a message where it is for ever."""
    dice = random.Random(seed)
    orders = Subscription("orders", "shop", ordered=ordered, lease=0.2)
    news = Subscription("news", "shop", lease=0.2)
    handled = Handled()

    async def work(broker: RedisBroker) -> None:
        consumer = broker.consume([orders, news])
        while True:
            room = {orders: dice.choice((0, 1, 3)), news: dice.choice((1, 2))}
            fetching = asyncio.ensure_future(consumer.fetch(room))
            try:
                patience = dice.choice((None, None, 0.002, 0.02)) if room[orders] else 0.002
                await asyncio.wait([fetching], timeout=patience)
            finally:
                fetching.cancel()
            await asyncio.wait([fetching])
            if not fetching.cancelled():
                await end(consumer, fetching.result())

    async def end(consumer: RedisConsumer, taken: Sequence[Delivery]) -> None:
        outcomes: list[Outcome] = []
        for one in taken:
            fate = dice.random()
            if fate < 0.1:
                continue  # as if it had died with it
            action, delay = Action.ACK, 0.0
            if fate < 0.3:
                action, delay = (Action.RELEASE, 0.0) if fate < 0.2 else (Action.RETRY, 0.01)
            outcomes.append(Outcome(one, action, delay=delay))
        lost = await consumer.settle(outcomes)
        for outcome in outcomes:
            if outcome.action is Action.ACK and outcome.delivery not in lost:
                handled.note(outcome.delivery.message.body)

    async with crew(server, 5, orders, news) as (publisher, *workers):
        working = [asyncio.ensure_future(work(broker)) for broker in workers]
        sent: list[Any] = []
        for _ in range(60):
            batch = [
                outgoing(
                    b"%d" % (len(sent) + number), dice.choice(("orders", "news")),
                    key=dice.choice((None, "a", "b")), delay=dice.choice((0.0, 0.0, 0.0, 0.01, 0.1)),
                )
                for number in range(dice.choice((1, 1, 1, 6)))
            ]  # fmt: skip
            sent += (one.body for one in batch)
            await publisher.publish(batch)
            if dice.random() < 0.2:
                await handled.all_of(sent)  # then all are idle
        await handled.all_of(sent)
        for worker in working:
            assert not worker.done()
            worker.cancel()
        await asyncio.wait(working)
