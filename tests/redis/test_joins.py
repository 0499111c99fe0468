"""Joins on Redis: one step with the ack, refused as a whole, and gone from the server when their time is over."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from carteiro import BrokerError
from carteiro.backends.redis import RedisBroker, RedisList, settling
from carteiro.errors import Unencodable
from carteiro.message import Action, Delivery, Join, Outcome, Outgoing, Subscription, Write
from carteiro.testing.clock import VirtualClock
from tests.redis.stage import ORDERS, connected, outgoing, soon, take
from tests.servers.redis import RedisServer

pytestmark = pytest.mark.needs("redis")

NEXT = Subscription("next", "shop", lease=60.0)


async def claimed(broker: RedisBroker, count: int = 1) -> list[Delivery]:
    await broker.publish([outgoing() for _ in range(count)])
    return await take(broker.consume([ORDERS]), count)


async def settle(broker: RedisBroker, delivery: Delivery, *joins: Join, writes: Sequence[Write] = ()) -> bool:
    """Ack it; False where its lease was lost."""
    outcome = Outcome(delivery, Action.ACK, joins=joins, writes=writes)
    return not await soon(broker.consume([ORDERS]).settle([outcome]))


def join(member: str, size: int = 2, *emits: Outgoing, key: str = "pair", ttl: float | None = None) -> Join:
    return Join(key, member, f"actor of {member}", size, emits, (Write(f"full:{key}", member.encode()),), ttl)


async def test_a_thousand_outcomes_of_one_settle_fill_their_set_once_and_leave_one_entry(redis_url: str):
    async with connected(redis_url, ORDERS, NEXT) as broker:
        deliveries = await claimed(broker, 1000)
        outcomes = [
            Outcome(one, Action.ACK, joins=(join(f"{number}", 1000, outgoing(b"%d" % number, "next")),))
            for number, one in enumerate(deliveries)
        ]

        assert await soon(broker.consume([ORDERS]).settle(outcomes)) == []

        (waiting,) = [group.waiting for group in await broker.groups() if group.topic == "next"]
        assert waiting == 1
        assert [one.message.body for one in await take(broker.consume([NEXT]), 1, NEXT)] == [b"999"]
        assert (await broker.store.get(["full:pair"]))["full:pair"].value == b"999"
        command = broker._server.link.command
        assert await command("HLEN", f"{broker._server.base}:join:pair") == 0
        assert await command("HLEN", f"{broker._server.base}:joined") == 1


async def test_what_a_join_emits_and_nobody_gets_is_noted_once_the_set_is_full(redis_url: str):
    async with connected(redis_url, ORDERS, NEXT) as broker:
        one, another, third = await claimed(broker, 3)
        nobodys = outgoing(topic="nobodys")

        await settle(broker, one, join("a", 2, nobodys))
        assert broker.unrouted.counts == {}
        await settle(broker, another, join("x", 2, nobodys, key="other"), join("b", 2, nobodys, outgoing(topic="next")))
        assert broker.unrouted.counts == {"nobodys": 1}
        assert not await settle(broker, another, join("c", 1, nobodys, key="lost"))
        assert broker.unrouted.counts == {"nobodys": 1}
        await settle(broker, third, join("y", 2, nobodys, key="other"))
        assert broker.unrouted.counts == {"nobodys": 2}


async def test_a_join_reaches_a_group_that_another_process_has_declared_meanwhile(redis_url: str):
    async with connected(redis_url, ORDERS) as broker:
        (one,) = await claimed(broker)
        async with connected(redis_url, NEXT) as other:
            await settle(broker, one, join("a", 1, outgoing(b"hello", "next")))

            assert [taken.message.body for taken in await take(other.consume([NEXT]), 1, NEXT)] == [b"hello"]
            assert broker.unrouted.counts == {}


async def test_a_join_that_emits_to_a_key_of_another_kind_is_refused_before_anything_is_done(redis_url: str):
    async with connected(redis_url, ORDERS) as broker:
        (one,) = await claimed(broker)
        command, name = broker._server.link.command, f"{broker._server.base}jobs"
        await command("SET", name, "text")
        misplaced = outgoing(topic=name, target=RedisList(name))

        with pytest.raises(BrokerError, match="is no list"):
            await settle(broker, one, join("b"), join("a", 2, misplaced))

        assert await settle(broker, one, join("a"))
        assert "full:pair" not in await broker.store.get(["full:pair"])


async def test_what_a_join_emits_and_writes_counts_towards_what_is_too_large_for_one_step(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(settling, "LARGEST", 16_000)
    async with connected(redis_url, ORDERS, NEXT) as broker:
        (one,) = await claimed(broker)
        large = Join("pair", "a", "actor", 2, [outgoing(b"." * 9000, "next")], [Write("full", b"." * 9000)])

        with pytest.raises(Unencodable, match="emit less from one message"):
            await settle(broker, one, large)

        assert await settle(broker, one)


async def test_a_set_is_remembered_for_its_time_after_the_last_add_whether_full_or_not(redis_url: str):
    clock = VirtualClock()
    async with connected(redis_url, clock=clock) as broker:
        store = broker.store

        async def made(*joins: Join) -> list[bool]:
            return list(await soon(store.join(joins)))

        await made(join("a", ttl=60.0), join("a", 1, key="full", ttl=60.0))
        clock.advance_to(clock.time() + 40)
        await made(join("b", 3, ttl=60.0))
        clock.advance_to(clock.time() + 40)
        assert await made(join("c", 3, ttl=60.0), join("a", 1, key="full", ttl=60.0)) == [True, True]
        assert [entry.version for entry in (await store.get(["full:full"])).values()] == [2], "that was another set"
        clock.advance_to(clock.time() + 61)
        assert await made(join("c", 3, ttl=60.0)) == [False]


async def test_sets_whose_time_is_over_leave_nothing_on_the_server():
    clock = VirtualClock()
    with RedisServer() as server:
        async with connected(server.url, clock=clock) as broker:
            sets = [join(member, 2, key=f"{number}", ttl=60.0) for number in range(20) for member in "ab"[: number % 3]]
            await broker.store.join(sets)
            assert server.says("HLEN", "{carteiro}:joined") == 6
            clock.advance_to(clock.time() + 61)

            await soon(broker._keeper._beat())

            assert not server.says("KEYS", "{carteiro}:join*")


async def test_a_store_makes_joins_and_publishes_nothing_by_itself(redis_url: str):
    async with connected(redis_url, NEXT) as broker:
        emit = outgoing(topic="next")

        made = await broker.store.join([join("a", 2, emit), join("b", 2, emit), join("a", 2, emit), join("b", 2, emit)])

        assert list(made) == [False, True, False, True]
        assert [group.waiting for group in await broker.groups()] == [0]
        assert (await broker.store.get(["full:pair"]))["full:pair"].version == 1
