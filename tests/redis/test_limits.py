"""Much at once: large batches, large bodies, many dead or delayed, and names of every kind."""

from __future__ import annotations

import pytest

from carteiro import Unencodable
from carteiro.backends.redis import RedisBroker
from carteiro.backends.redis.publishing import LARGEST
from carteiro.message import Action, Delivery, Subscription, Write
from carteiro.ports.broker import Consumer
from tests.redis.stage import ORDERS, connected, outgoing, settle, soon, take

pytestmark = pytest.mark.needs("redis")

MANY = 20_000


@pytest.mark.parametrize("ordered", [False, True])
async def test_twenty_thousand_messages_are_published_claimed_and_settled_at_once(redis_url: str, ordered: bool):
    orders = Subscription("orders", "shop", ordered=ordered, lease=60.0)
    async with connected(redis_url, orders) as broker:
        consumer = broker.consume([orders])
        await soon(broker.publish([outgoing(b"%d" % number, key=f"{number}") for number in range(MANY)]))
        taken = await take(consumer, MANY, orders)
        assert [int(one.message.body) for one in taken] == list(range(MANY))
        assert await soon(consumer.renew(taken)) == []
        assert await settle(consumer, taken[::2], Action.RETRY) == []
        assert await settle(consumer, taken[1::2]) == []
        again = await take(consumer, MANY // 2, orders)
        assert {one.message.attempt for one in again} == {2}
        assert await settle(consumer, again, emits=[outgoing(topic="nobody")]) == []
        assert (await broker.groups())[0].in_flight == 0


async def test_a_claim_with_room_for_ten_thousand_gets_them(redis_url: str):
    async with connected(redis_url, ORDERS) as broker:
        consumer = broker.consume([ORDERS])
        await broker.publish([outgoing(b"%d" % number) for number in range(10_000)])
        taken = await soon(consumer.fetch({ORDERS: 10_000}))
        assert len(taken) == 10_000
        await settle(consumer, taken)


@pytest.mark.parametrize("behind_a_retry", [False, True])
async def test_large_bodies_come_in_answers_that_are_bounded(redis_url: str, behind_a_retry: bool):
    size = 1_000_000
    async with connected(redis_url, ORDERS) as broker:
        consumer = broker.consume([ORDERS])
        if behind_a_retry:
            await broker.publish([outgoing(b"")])
            await settle(consumer, await take(consumer), Action.RELEASE)
        for _ in range(5):
            await broker.publish([outgoing(bytes([number]) * size) for number in range(10)])
        taken: list[Delivery] = []
        while len(taken) < 50 + behind_a_retry:
            some = await soon(consumer.fetch({ORDERS: 10_000}))
            assert sum(len(one.message.body) for one in some) <= 16 * 1024 * 1024
            taken += some
        assert [one.message.body[:1] for one in taken[behind_a_retry:]] == [
            bytes([n]) for _ in range(5) for n in range(10)
        ]
        await settle(consumer, taken)


async def test_many_queues_with_large_bodies_come_in_answers_that_are_bounded(redis_url: str):
    topics = [Subscription(f"topic.{number}", "shop", lease=60.0) for number in range(20)]
    async with connected(redis_url, *topics) as broker:
        consumer = broker.consume(topics)
        for one in topics:
            await broker.publish([outgoing(b"x" * 1_000_000, one.topic) for _ in range(4)])
        left = 80
        while left:
            some = await soon(consumer.fetch(dict.fromkeys(topics, 100)))
            assert sum(len(one.message.body) for one in some) <= 16 * 1024 * 1024
            await settle(consumer, some)
            left -= len(some)


async def test_bodies_keys_headers_and_groups_of_every_kind_come_as_they_went(redis_url: str):
    odd = Subscription("pedidos.São-Paulo.日本", "a group [with] {braces}: ção 📦", ordered=True, lease=60.0)
    sent = [
        outgoing(b"", odd.topic, key=""),
        outgoing(bytes(range(256)) * 300, odd.topic, key="nul\0key"),
        outgoing(
            b"\xff\xfe", odd.topic, key="k" * 70_000, headers={"naïve": "Zoë Müller 📦", "": "", "x": "v" * 70_000}
        ),
        outgoing(b"x", odd.topic, key=None, id="an id with \0 and é"),
    ]
    async with connected(redis_url, odd) as broker:
        consumer = broker.consume([odd])
        await broker.publish(sent)
        taken = await take(consumer, len(sent), odd)
        for before, after in zip(
            sent, sorted(taken, key=lambda one: [m.id for m in sent].index(one.message.id)), strict=True
        ):
            message = after.message
            assert (message.id, message.body, message.key) == (before.id, before.body, before.key)
            assert dict(message.headers) == dict(before.headers)
        await settle(consumer, taken, Action.DEAD)
        letters = await broker.dead_letters()
        assert {(letter.topic, letter.group) for letter in letters} == {(odd.topic, odd.group)}
        assert await broker.replay(letters[0].queue) == len(sent)
        assert (await broker.groups())[0].waiting == len(sent)


async def test_a_hundred_thousand_dead_letters_are_listed_in_part_and_purged(redis_url: str):
    async with connected(redis_url, ORDERS) as broker:
        consumer = broker.consume([ORDERS])
        for _ in range(10):
            await broker.publish([outgoing(b"x" * 500) for _ in range(10_000)])
            await settle(consumer, await take(consumer, 10_000), Action.DEAD)
        everything = await soon(broker.dead_letters("dlq_orders"))
        assert len({letter.id for letter in everything}) == 100_000
        ids = [letter.id for letter in everything]
        assert [letter.id for letter in await soon(broker.dead_letters(ids=ids[::-2]))] == ids[1::2]
        assert len(await broker.dead_letters("dlq_orders", limit=10)) == 10
        assert len(await broker.dead_letters(limit=10)) == 10
        assert (await broker.groups())[0].dead == 100_000
        assert await soon(broker.purge_dead("dlq_orders")) == 100_000
        assert await broker.dead_letters(limit=1) == []


async def test_a_hundred_thousand_dead_letters_are_replayed(redis_url: str):
    async with connected(redis_url, ORDERS) as broker:
        consumer = broker.consume([ORDERS])
        for _ in range(10):
            await broker.publish([outgoing(b"x") for _ in range(10_000)])
            await settle(consumer, await take(consumer, 10_000), Action.DEAD)
        assert await soon(broker.replay("dlq_orders")) == 100_000
        assert (await broker.groups())[0].waiting == 100_000
        await soon(broker.purge(ORDERS.topic, ORDERS.group))


async def test_a_peek_and_the_store_answer_whatever_they_hold(redis_url: str):
    async with connected(redis_url, ORDERS) as broker:
        await settle(await _listening(broker), [])
        for _ in range(6):
            await broker.publish([outgoing(b"x" * 1_000_000) for _ in range(10)])
        assert len(await soon(broker.peek(ORDERS.topic, ORDERS.group, limit=100))) == 60
        store = broker.store
        await store.connect()
        keys = [f"large/{number:02}" for number in range(60)]
        for key in keys:
            await store.write([Write(key, b"x" * 1_000_000)])
        assert list(await soon(store.scan("large/"))) == keys
        assert (await soon(store.get([*keys, "none"]))).keys() == set(keys)
        await store.close()


async def _listening(broker: RedisBroker) -> Consumer:
    """A consumer: with it the connection listens, and the server's limit for those holds."""
    consumer = broker.consume([ORDERS])
    await broker.groups()
    return consumer


async def test_groups_count_a_hundred_thousand_delayed(redis_url: str):
    async with connected(redis_url, ORDERS) as broker:
        for _ in range(10):
            await broker.publish([outgoing(b"x", delay=3600.0) for _ in range(10_000)])
        (status,) = await soon(broker.groups())
        assert (status.delayed, status.waiting, status.retrying) == (100_000, 0, 0)
        assert len(await broker.peek(ORDERS.topic, ORDERS.group, limit=10)) == 10
        assert await soon(broker.purge(ORDERS.topic, ORDERS.group)) == 100_000


async def test_a_body_that_could_never_be_fetched_is_refused_and_the_largest_is_not(redis_url: str):
    async with connected(redis_url, ORDERS) as broker:
        consumer = broker.consume([ORDERS])
        with pytest.raises(Unencodable, match=r"has 16.0 MB, and Redis hands out no more than 16 MB"):
            await broker.publish([outgoing(b"small"), outgoing(b"x" * LARGEST)])
        sent = [outgoing(b"x" * (LARGEST - 1000)) for _ in range(3)]
        for message in sent:
            await soon(broker.publish([message]))
        taken = await take(consumer, 3)
        assert [one.message.id for one in taken] == [message.id for message in sent]
        await settle(consumer, taken)
