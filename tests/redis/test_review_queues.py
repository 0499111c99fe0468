"""Queues that are large, mixed or cut into pages: what one step of the server does, and what several do together."""

from __future__ import annotations

import pytest

from carteiro.backends.redis import inspector
from carteiro.errors import BrokerError
from carteiro.message import Action, Retention, Subscription
from carteiro.topics import dlq_name
from tests.redis.stage import ORDERS, connected, outgoing, settle, soon, take
from tests.servers.redis import RedisServer

pytestmark = pytest.mark.needs("redis")

BY_KEY = Subscription("orders", "by key", ordered=True, lease=60.0)


async def test_ten_thousand_messages_of_one_key_are_rewound_within_the_links_timeout(redis_url: str):
    async with connected(redis_url) as broker:
        await broker.declare([BY_KEY], [Retention("orders", 3600.0)])
        consumer = broker.consume([BY_KEY])
        await broker.publish([outgoing(b"%d" % number, key="hot") for number in range(10_000)])
        for one in range(3):
            (delivery,) = await take(consumer, 1, BY_KEY)
            assert int(delivery.message.body) == one
            await settle(consumer, [delivery])

        assert await broker.rewind("orders", "by key", 0.0) == 3

        peeked = await broker.peek("orders", "by key", 10_000)
        assert [int(message.body) for message in peeked] == list(range(10_000))


async def test_a_second_queue_is_claimed_in_as_few_steps_though_the_first_was_heavy():
    heavy = Subscription("heavy", "shop", lease=60.0)
    with RedisServer() as server:
        async with connected(server.url, heavy, ORDERS) as broker:
            consumer = broker.consume([heavy, ORDERS])
            await broker.publish([outgoing(b"x" * 7_900_000, "heavy")])
            await broker.publish([outgoing() for _ in range(1000)])
            server.says("CONFIG", "RESETSTAT")

            taken = await soon(consumer.fetch({heavy: 1, ORDERS: 1000}))

            assert len(taken) == 1001
            pops = server.says("INFO", "commandstats")["cmdstat_lpop"]["calls"]
            assert pops < 30, "a queue's own messages say how many of its next ones fit"
            await settle(consumer, taken)


async def test_a_peek_leaves_out_what_was_claimed_before_the_queue_was_ordered(redis_url: str):
    free = Subscription("orders", "by key", lease=60.0)
    async with connected(redis_url, free) as broker:
        consumer = broker.consume([free])
        await broker.publish([outgoing(b"%d" % number, key="a") for number in range(4)])
        claimed = await take(consumer, 3, free)
        await broker.declare([BY_KEY])
        await settle(consumer, claimed[:1], Action.RELEASE)

        assert [message.body for message in await broker.peek("orders", "by key")] == [b"0", b"3"]
        await settle(consumer, claimed[1:])


async def dead(broker, count: int, *, keys: int = 1) -> None:
    consumer = broker.consume([BY_KEY])
    await broker.publish([outgoing(b"%d" % number, key=f"{number % keys}") for number in range(count)])
    left = count
    while left:
        taken = await soon(consumer.fetch({BY_KEY: count}))
        await settle(consumer, taken, Action.DEAD)
        left -= len(taken)
    await consumer.close()


async def test_dead_letters_are_read_replayed_and_purged_in_pages(redis_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inspector, "_PAGE", 4)
    queue = dlq_name("orders")
    async with connected(redis_url, BY_KEY) as broker:
        await dead(broker, 10)
        letters = await broker.dead_letters(queue)
        assert [int(letter.message.body) for letter in letters] == list(range(10))
        assert len(await broker.dead_letters(queue, limit=6)) == 6
        assert await broker.dead_letters(queue, limit=0) == []

        assert await broker.replay(queue) == 10
        assert await broker.dead_letters() == []
        assert [int(message.body) for message in await broker.peek("orders", "by key")] == list(range(10))

        consumer = broker.consume([BY_KEY])
        for _ in range(10):
            await settle(consumer, await take(consumer, 1, BY_KEY), Action.DEAD)
        ids = [letter.id for letter in await broker.dead_letters(queue)]
        assert await broker.purge_dead(queue, ids=[*ids[:5], ids[0], "no number"]) == 5
        assert await broker.purge_dead(queue) == 5
        assert (await broker.groups())[0].dead == 0


async def test_an_error_in_the_middle_of_a_replay_says_how_many_were_replayed(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(inspector, "_PAGE", 2)
    queue = dlq_name("orders")
    async with connected(redis_url, BY_KEY) as broker, connected(redis_url) as other:
        await dead(broker, 6)
        run = broker._server.run

        async def remove_after_one(script, *request, **options):
            answer = await run(script, *request, **options)
            if script.name == "replay":
                await other.remove_group("orders", "by key")
            return answer

        monkeypatch.setattr(broker._server, "run", remove_after_one)
        with pytest.raises(BrokerError, match=r"2 were replayed: the group of .* was removed"):
            await broker.replay(queue)
        assert len(await broker.dead_letters(queue)) == 4
