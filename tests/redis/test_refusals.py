"""What a server may refuse, each by a real one: said in words that name the way out, and over when its cause is."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest

from carteiro import BrokerError, BrokerUnavailable
from carteiro.message import Action, Outgoing, Subscription
from carteiro.ports.broker import Broker
from carteiro.testing.clock import VirtualClock
from tests.redis.stage import (
    ORDERS,
    PATIENCE,
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
from tests.servers.redis import RedisServer, with_query

pytestmark = pytest.mark.needs("redis")


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """One that a test may harm."""
    with RedisServer(aof="everysec") as started:
        yield started


# -- what is lost while it runs ---------------------------------------------------------------------------------------


async def test_scripts_that_are_flushed_under_load_are_missed_by_nobody(server: RedisServer):
    handled = Handled()
    app = shop(server.url, handled)
    async with working(app):
        for start in range(0, 1000, 50):
            numbers = range(start, start + 50)
            publishing = asyncio.gather(*(app.publish("orders", number) for number in numbers))
            await asyncio.to_thread(server.says, "SCRIPT", "FLUSH")
            await soon(publishing)
        await handled.all_of(range(1000))
    assert handled.counts.total() == 1000


async def test_a_server_that_is_flushed_under_load_has_its_groups_again_by_itself(server: RedisServer):
    handled = Handled()
    app = shop(server.url, handled)
    async with working(app):
        for round in range(5):
            numbers = [1000 * round + number for number in range(100)]
            publishing = asyncio.gather(*(app.publish("orders", number) for number in numbers))
            await asyncio.to_thread(server.says, "FLUSHALL")
            await soon(publishing)
            await app.publish("orders", -round, mandatory=True)
            await handled.all_of([-round])


async def test_what_is_published_after_a_flush_by_many_at_once_is_lost_by_none(server: RedisServer):
    async with connected(server.url, ORDERS) as broker:
        consumer = broker.consume([ORDERS])
        await passes(broker)
        for _ in range(20):
            server.says("FLUSHALL")
            unrouted = await asyncio.gather(*(broker.publish([outgoing()]) for _ in range(10)))
            assert unrouted == [[]] * 10
            await settle(consumer, await take(consumer, 10))


async def test_an_idle_worker_has_its_groups_again_with_the_next_beat_after_a_flush(server: RedisServer):
    clock = VirtualClock()
    broadcast = Subscription("news", "process-1", ephemeral=True, lease=60.0)
    async with connected(server.url, ORDERS, broadcast, clock=clock) as broker:
        consumer = broker.consume([ORDERS, broadcast])
        fetching = asyncio.ensure_future(consumer.fetch({ORDERS: 1}))
        await until(_idle(server))
        server.says("FLUSHALL")
        clock.advance_to(clock.time() + 10)
        await until(lambda: asyncio.to_thread(server.says, "HLEN", "{carteiro}:routes"))
        async with connected(server.url, clock=clock) as other:
            assert await other.publish([outgoing(b"after"), outgoing(topic="news")]) == []
        await settle(consumer, await soon(fetching))
        await settle(consumer, await take(consumer, subscription=broadcast))


def _idle(server: RedisServer):
    async def idle() -> bool:
        return bool(await asyncio.to_thread(server.says, "SISMEMBER", "{carteiro}:armed", "{carteiro}:orders [shop]"))

    return idle


async def test_a_group_that_was_removed_is_not_declared_again_by_who_only_meets_its_lack(server: RedisServer):
    async with connected(server.url, ORDERS) as broker, connected(server.url) as other:
        consumer = broker.consume([ORDERS])
        await other.remove_group(ORDERS.topic, ORDERS.group)
        with pytest.raises(BrokerError, match="no group `shop` on `orders`: declare it first"):
            await soon(consumer.fetch({ORDERS: 1}))
        assert await broker.groups() == []


@pytest.mark.parametrize("group", ["ação 日本 📦", "two\nlines\r\n", "nul\0", "a [b] c"])
async def test_a_group_of_any_name_is_found_to_be_missing_and_declared_again(server: RedisServer, group: str):
    orders = Subscription("orders", group, lease=60.0)
    async with connected(server.url, orders) as broker, connected(server.url) as other:
        consumer = broker.consume([orders])
        server.says("FLUSHALL")
        await broker.publish([outgoing(b"again")])
        await settle(consumer, await take(consumer, subscription=orders))
        assert [status.group for status in await broker.groups()] == [group]
        await other.remove_group("orders", group)
        with pytest.raises(BrokerError, match="declare it first"):
            await soon(consumer.fetch({orders: 1}))


# -- what passes ------------------------------------------------------------------------------------------------------


async def test_a_master_that_becomes_a_replica_is_waited_for(server: RedisServer):
    handled = Handled()
    app = shop(server.url, handled, publish_timeout=0.3)
    with RedisServer() as master:
        async with working(app):
            await app.publish("orders", 1)
            await handled.all_of([1])
            server.says("REPLICAOF", "127.0.0.1", master.port)
            with pytest.raises(BrokerUnavailable, match="is a replica, and takes no writes: connect to the master"):
                await app.publish("orders", 2)
            server.says("REPLICAOF", "NO", "ONE")
            assert app.worker is not None
            await patiently(lambda: app.publish("orders", 3))
            await handled.all_of([3])
    assert handled.counts[2] == 0


async def test_a_full_server_refuses_messages_by_name_and_workers_empty_it(caplog: pytest.LogCaptureFixture):
    with RedisServer(maxmemory="20mb") as server:
        async with connected(server.url, ORDERS) as broker:
            batch = [outgoing(b"x" * 100_000) for _ in range(20)]
            accepted = len(batch) * await _accepted(broker, batch, "is full and takes no new messages")
            (status,) = await broker.groups()
            assert status.waiting == accepted, "a batch was published by half"

            server.says("CONFIG", "SET", "maxmemory", "1mb")
            async with connected(server.url, ORDERS) as newcomer:  # a worker may even start now
                consumer = newcomer.consume([ORDERS])
                first = await take(consumer, 10)
                await settle(consumer, first[:5], Action.RETRY, delay=0.0)
                await settle(consumer, first[5:], Action.ACK)
                await settle(consumer, await take(consumer, accepted - 5))
                server.says("CONFIG", "SET", "maxmemory", "20mb")
                await broker.publish(batch)
                await settle(consumer, await take(consumer, len(batch)))
                (status,) = await broker.groups()
                assert (status.waiting, status.in_flight, status.delayed) == (0, 0, 0)


async def test_a_worker_with_a_rate_limit_empties_a_full_server_too():
    with RedisServer() as server:
        handled = Handled()
        app = shop(server.url, handled)

        @app.subscriber("slow", rate_limit="10000/s")
        async def slow(body: str) -> None:
            handled.note(len(body))

        async with app:
            await app.publish("slow", "x" * 100)
            server.says("CONFIG", "SET", "maxmemory", "1mb")
            with pytest.raises(BrokerUnavailable, match="is full"):
                await app.connection.broker.publish([outgoing()])
            async with working(app):
                await handled.all_of([100])


async def test_a_server_that_loads_its_data_is_waited_for():
    # A millisecond a key: loading takes two seconds.
    with RedisServer(
        aof="always", config=["key-load-delay 1000", "loading-process-events-interval-bytes 1024"]
    ) as server:
        handled = Handled()
        app = shop(server.url, handled)
        async with working(app):
            await app.publish("orders", 1)
            await handled.all_of([1])
            await asyncio.to_thread(_fill_its_snapshot, server)
            server.kill()
            starting = asyncio.create_task(asyncio.to_thread(server.start))

            await _accepted(app.connection.broker, [outgoing(b"0")], "is loading its data after a start")

            await soon(starting)
            await app.publish("orders", 2)
            await handled.all_of([2])


def _fill_its_snapshot(server: RedisServer) -> None:
    with server.client() as client, client.pipeline() as pipe:
        for key in range(2000):
            pipe.set(f"other:{key}", "x" * 1000)
        pipe.execute()
    server.says("BGREWRITEAOF")
    server.until(lambda: server.says("INFO", "persistence")["aof_base_size"] > 10_000, "done with its rewriting")


async def _accepted(broker: Broker, batch: Sequence[Outgoing], words: str) -> int:
    """How often it takes the batch until it refuses it with these words."""
    accepted = 0
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                await broker.publish(batch)
            except BrokerUnavailable as error:
                if words in str(error):
                    return accepted
            else:
                accepted += 1


async def test_a_server_that_cannot_save_refuses_writes_and_says_so():
    with RedisServer(config=["save 3600 1"]) as server:
        async with connected(server.url, ORDERS) as broker:
            await passes(broker)
            (server.folder / "dump.rdb").mkdir()  # where it would put its snapshot
            server.says("BGSAVE")
            await until(lambda: asyncio.to_thread(_failed_to_save, server))
            with pytest.raises(BrokerUnavailable, match=r"cannot save to its disk.*look at its log and its disk"):
                await broker.publish([outgoing()])
            server.says("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")
            await passes(broker)


def _failed_to_save(server: RedisServer) -> bool:
    return bool(server.says("INFO", "persistence")["rdb_last_bgsave_status"] == "err")


async def test_a_script_of_someone_else_that_keeps_the_server_busy_is_waited_for():
    with RedisServer(config=["busy-reply-threshold 10"]) as server:
        async with connected(server.url, ORDERS) as broker:
            looping = asyncio.create_task(asyncio.to_thread(_loop, server))
            await _accepted(broker, [outgoing()], "is kept busy by a script of someone else")
            with server.client() as client:
                client.script_kill()
            await soon(looping)
            consumer = broker.consume([ORDERS])
            await patiently(lambda: broker.publish([outgoing(b"last")]))
            while (await take(consumer))[0].message.body != b"last":
                pass


def _loop(server: RedisServer) -> None:
    with server.client(socket_timeout=60) as client, contextlib.suppress(Exception):
        client.eval("while true do end", 0)


# -- what it does not permit ------------------------------------------------------------------------------------------


async def test_a_user_without_a_command_is_told_of_the_rule(server: RedisServer):
    server.says("ACL", "SETUSER", "ana", "on", ">secret", "~*", "&*", "+@all", "-rpush")
    async with connected(server.url_with(user="ana", password="secret"), ORDERS) as broker:
        with pytest.raises(BrokerError, match=r"does not permit this user .*docs/guides/redis.md") as refused:
            await broker.publish([outgoing()])
    assert not isinstance(refused.value, BrokerUnavailable)


async def test_a_user_without_the_keys_is_told_of_the_rule(server: RedisServer):
    server.says("ACL", "SETUSER", "ana", "on", ">secret", "~{other}*", "&*", "+@all")
    broker = backend(server.url_with(user="ana", password="secret")).broker
    await broker.connect()
    with pytest.raises(BrokerError, match=r"does not permit this user .*docs/guides/redis.md"):
        await broker.declare([ORDERS])
    await broker.close()


async def test_a_user_without_the_channels_is_told_of_the_rule_and_gets_no_others_answers(server: RedisServer):
    server.says("ACL", "SETUSER", "ana", "on", ">secret", "~*", "resetchannels", "+@all")
    async with connected(server.url_with(user="ana", password="secret")) as broker:
        consumer = broker.consume([ORDERS])
        with pytest.raises(BrokerUnavailable, match=r"does not permit this user .*docs/guides/redis.md"):
            await soon(consumer.fetch({ORDERS: 1}))


# -- who is no such server --------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[int]:
    """A port that answers each thing it is told with the next of these, whatever that was."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for one in answers:
            await reader.read(65_536)
            writer.write(one)
        await reader.read()
        writer.close()

    port = free_port()
    async with await asyncio.start_server(answer, "127.0.0.1", port) as serving:
        yield port
        serving.close()


async def test_an_older_server_is_refused_with_its_version():
    hello = b"%2\r\n+server\r\n+redis\r\n+version\r\n+6.2.14\r\n+OK\r\n"
    async with answering(hello) as port:
        with pytest.raises(BrokerError, match=r"is version 6\.2\.14: carteiro needs Redis 7 or later, or Valkey"):
            await soon(backend(f"redis://127.0.0.1:{port}").broker.connect())


async def test_a_server_that_knows_no_hello_is_refused():
    async with answering(b"-ERR unknown command 'HELLO'\r\n-ERR x\r\n") as port:
        with pytest.raises(BrokerError, match="needs Redis 7 or later"):
            await soon(backend(f"redis://127.0.0.1:{port}").broker.connect())


async def test_a_port_that_speaks_http_is_refused():
    async with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port}.*does not speak Redis' protocol"):
            await soon(backend(f"redis://127.0.0.1:{port}").broker.connect())


async def test_a_port_that_says_nothing_is_given_up(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    async with answering() as port:
        url = with_query(f"redis://127.0.0.1:{port}", connect_timeout="0.2")
        with pytest.raises(BrokerUnavailable, match=r"no answer within 0.2 s: is it up, and the port right\?"):
            await soon(backend(url).broker.connect())


async def test_a_port_where_nobody_listens_is_named():
    port = free_port()
    with pytest.raises(BrokerUnavailable, match=f"redis://127.0.0.1:{port}` cannot be reached.*start the server"):
        await soon(backend(f"redis://127.0.0.1:{port}").broker.connect())
