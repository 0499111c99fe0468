"""What a worker takes of its server: connections and calls while idle, keys while busy, and nothing after."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from carteiro.message import Action, Join, Retention, Subscription, Write
from carteiro.testing.clock import VirtualClock
from tests.redis.stage import ORDERS, connected, outgoing, settle, soon, take, until
from tests.servers.redis import RedisServer

pytestmark = pytest.mark.needs("redis")

KEYS = re.compile(
    r"\{carteiro\}:("
    r"(meta|routes|retentions|ephemeral|consumers|armed|told|removed|marks|sequence|publisher:[^:]+)"
    r"|store(:keys|:expiries)?"
    r"|joins|joined|join:.+"
    r"|dead(:all|:counts|:sequence|:of:dlq_.+)?"
    r"|log:[^\s:]+"
    r"|[^\s:]+ \[.+\]:(ready|due|leases|held|tries|failures|lanes|waiting)"
    r")"
)
"""The documented scheme: the headers in `lua/`."""


async def test_an_idle_worker_with_200_subscriptions_holds_one_connection_and_makes_no_calls_between_beats():
    topics = [Subscription(f"topic.{number}", "shop", lease=60.0) for number in range(200)]
    clock = VirtualClock()
    with RedisServer() as server:
        async with connected(server.url, *topics, clock=clock) as broker:
            consumer = broker.consume(topics)
            fetching = asyncio.ensure_future(consumer.fetch(dict.fromkeys(topics, 100)))
            await until(lambda: asyncio.to_thread(lambda: server.says("SCARD", "{carteiro}:armed") == 200))
            assert [one["name"] for one in server.says("CLIENT LIST")].count("carteiro") == 1

            await settled(server)
            before = calls(server)
            for _ in range(200):
                await asyncio.sleep(0)
            clock.advance_to(clock.time() + 9.9)
            for _ in range(200):
                await asyncio.sleep(0)
            assert calls(server) == before

            clock.advance_to(clock.time() + 0.2)
            await until(lambda: asyncio.to_thread(lambda: calls(server) > before))
            await settled(server)
            assert calls(server) - before <= 3, "a beat is a call, and a look at all queues another"

            await broker.publish([outgoing(topic="topic.150")])
            await settle(consumer, await soon(fetching))


def calls(server: RedisServer) -> int:
    stats = server.says("INFO", "commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval"))


async def settled(server: RedisServer) -> None:
    """Return when what is under way has come to an end: a dozen turns of the loop without a call."""
    before = -1
    while before != (now := await asyncio.to_thread(calls, server)):
        before = now
        for _ in range(12):
            await asyncio.sleep(0.001)


async def test_what_a_killed_process_had_claimed_comes_to_others_that_idle_when_its_lease_ends():
    orders = Subscription("orders", "shop", lease=1.0)
    with RedisServer() as server:
        async with connected(server.url, orders) as broker:
            await broker.publish([outgoing(b"orphan")])
            victim = await asyncio.create_subprocess_exec(
                sys.executable, "-c", VICTIM, server.url, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
            )
            assert victim.stdout is not None
            assert await soon(victim.stdout.readline()) == b"claimed\n"
            idle = [broker.consume([orders]) for _ in range(3)]
            fetches = [asyncio.ensure_future(consumer.fetch({orders: 1})) for consumer in idle]
            os.kill(victim.pid, signal.SIGKILL)
            await victim.wait()

            done, _ = await asyncio.wait(fetches, timeout=20, return_when=asyncio.FIRST_COMPLETED)
            (taken,) = [one.result() for one in done]
            assert [(one.message.body, one.message.attempt, one.lost) for one in taken] == [(b"orphan", 2, 1)]
            consumer = idle[fetches.index(next(iter(done)))]
            await settle(consumer, taken)
            for fetch in fetches:
                fetch.cancel()
            await asyncio.wait(fetches)


VICTIM = """
import asyncio, sys
from carteiro.message import Subscription
from carteiro.ports.registry import open_backend

async def main():
    orders = Subscription("orders", "shop", lease=1.0)
    broker = open_backend(sys.argv[1]).broker
    await broker.connect()
    await broker.declare([orders])
    await broker.consume([orders]).fetch({orders: 1})
    print("claimed", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_every_key_is_of_the_documented_scheme_and_nothing_of_what_is_done_stays():
    clock = VirtualClock()
    with RedisServer() as server:
        async with connected(server.url, clock=clock) as broker:
            plain, ordered = ORDERS, Subscription("orders", "by key", ordered=True, lease=60.0)
            broadcast = Subscription("orders", "process-1", ephemeral=True, lease=60.0)
            await broker.declare([plain, ordered, broadcast], [Retention("orders", 60.0)])
            consumer = broker.consume([plain, ordered, broadcast])
            await broker.publish(
                [
                    outgoing(
                        b"%d" % number, id=f"order-{number}", key=f"customer\0{number % 7}", headers={"naïve": "ção"},
                        delay=float(number % 3), dedupe=3600.0,
                    )
                    for number in range(1000)
                ]
            )  # fmt: skip
            found = names(server)
            for subscription in (plain, ordered, broadcast):
                await handle_all(broker, consumer, subscription, clock, found, server)
            assert len(await broker.dead_letters()) == 3
            assert await broker.purge_dead("dlq_orders.shop") + await broker.purge_dead("dlq_orders.by key") in (2, 3)
            for letter in await broker.dead_letters():
                await broker.purge_dead(letter.queue)
            await consumer.close()

            strangers = [name for name in found if not KEYS.fullmatch(name)]
            assert strangers == []
            left = names(server)
            assert not [name for name in left if " [" in name], "of what is done nothing is left in any queue"
            assert {"{carteiro}:marks", "{carteiro}:log:orders", "{carteiro}:store"} <= left
            assert not {"{carteiro}:consumers", "{carteiro}:ephemeral"} & left

            for _ in range(3):
                clock.advance_to(clock.time() + 2000)
                await next_beat(broker)
            left = names(server)
            assert server.says("XLEN", "{carteiro}:log:orders") == 0
            gone = {"marks", "store", "store:keys", "store:expiries", "dead", "dead:all", "dead:counts"}
            gone |= {"joins", "joined"}
            assert not {f"{{carteiro}}:{name}" for name in gone} & left
            assert not [name for name in left if ":join:" in name]
            await broker.remove_group("orders", "shop")
            await broker.remove_group("orders", "by key")
            remaining = {re.sub(r"publisher:.*", "publisher", name) for name in names(server)}
            allowed = {"meta", "retentions", "log:orders", "sequence", "dead:sequence", "publisher", "removed"}
            assert remaining <= {f"{{carteiro}}:{name}" for name in allowed}


async def handle_all(broker, consumer, subscription, clock, found, server) -> None:
    """Each message fails once, one of them for good; the others are acked with a mark in the store."""
    done, failed, dead = 0, set(), 0
    while done < 1000:
        fetching = asyncio.ensure_future(consumer.fetch({subscription: 100}))
        while not fetching.done():
            await asyncio.sleep(0.001)
            if not fetching.done() and (due := clock.next_due()) is not None:
                clock.advance_to(min(due, clock.time() + 0.5))
        for one in fetching.result():
            if one.message.id not in failed:
                failed.add(one.message.id)
                await settle(consumer, [one], Action.RETRY, delay=0.5)
            elif not dead:
                dead += 1
                done += 1
                await settle(consumer, [one], Action.DEAD)
            else:
                done += 1
                mark = Write(f"done/{subscription.group}/{one.message.id}", b"yes", ttl=3600.0)
                member = Join(f"pair/{subscription.group}/{done // 2}", one.message.id, "actor", 2, ttl=3600.0)
                await settle(consumer, [one], writes=[mark], joins=[member])
        found |= names(server)


def names(server: RedisServer) -> set[str]:
    return set(server.says("KEYS", "*"))


async def next_beat(broker) -> None:
    await broker._keeper._beat()


async def test_a_hundred_thousand_messages_that_are_done_leave_the_memory_as_it_was():
    with RedisServer() as server:
        async with connected(server.url, ORDERS) as broker:
            consumer = broker.consume([ORDERS])
            await broker.publish([outgoing(b"x" * 100) for _ in range(1000)])
            await settle(consumer, await take(consumer, 1000))
            before = server.says("DBSIZE")
            for _ in range(10):
                await broker.publish([outgoing(b"x" * 100) for _ in range(10_000)])
                await settle(consumer, await take(consumer, 10_000))
            assert server.says("DBSIZE") == before
            assert len(await broker.groups()) == 1
