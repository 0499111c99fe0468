"""Waiting for keys of the store: what it costs the server, and that no loss goes unnoticed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping

import pytest

from carteiro import BrokerUnavailable
from carteiro.backends.redis import RedisStore
from carteiro.errors import NotConnected
from carteiro.message import Write
from carteiro.ports.clock import SYSTEM_CLOCK, Clock
from carteiro.ports.store import Entry
from carteiro.testing.clock import VirtualClock
from tests.redis.stage import backend, soon, until
from tests.servers.proxy import Proxy
from tests.servers.redis import RedisServer

pytestmark = pytest.mark.needs("redis")

Waiting = asyncio.Task[Mapping[str, Entry | None]]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as started:
        yield started


@contextlib.asynccontextmanager
async def opened(url: str, clock: Clock = SYSTEM_CLOCK) -> AsyncIterator[RedisStore]:
    store = backend(url, clock).store
    await soon(store.connect())
    try:
        yield store
    finally:
        await soon(store.close())


def wait(store: RedisStore, **versions: int) -> Waiting:
    return asyncio.create_task(store.changed(versions))


async def heard(server: RedisServer, count: int) -> None:
    """Return when so many keys are waited for, and each was looked at."""
    await until(lambda: asyncio.to_thread(lambda: len(server.says("PUBSUB", "SHARDCHANNELS")) == count))


async def looked(store: RedisStore) -> None:
    """Return when a look that was under way has been answered."""
    await soon(store.get(["nothing"]))
    await soon(store.get(["nothing"]))


def calls(server: RedisServer, *names: str) -> list[int]:
    stats = server.says("INFO", "commandstats")
    return [stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in names]


# -- what it costs ----------------------------------------------------------------------------------------------------


async def test_a_thousand_waits_are_one_subscription_and_one_look_and_so_is_their_end(server: RedisServer):
    async with opened(server.url) as store, opened(server.url) as other:
        waits = [wait(store, **{f"key{number}": 0}) for number in range(1000)]
        await heard(server, 1000)
        await looked(store)
        assert calls(server, "ssubscribe") == [1]

        await other.write([Write(f"key{number}", b"%d" % number) for number in range(1000)])

        for number, found in enumerate(await soon(asyncio.gather(*waits))):
            assert found == {f"key{number}": Entry(b"%d" % number, 1)}
        await heard(server, 0)
        assert calls(server, "spublish", "sunsubscribe") == [1000, 1]
        assert sum(calls(server, "evalsha", "eval")) < 20, "each piece that comes is a look at most"


async def test_a_write_that_nobody_waits_for_tells_nobody(server: RedisServer):
    async with opened(server.url) as store:
        waiting = wait(store, one=0)
        await heard(server, 1)

        await store.write([Write("another", b"1"), Write("one ", b"1")])

        assert calls(server, "spublish") == [0]
        waiting.cancel()


async def test_who_waits_in_a_loop_keeps_the_subscription(server: RedisServer):
    async with opened(server.url) as store, opened(server.url) as writer:

        async def follow() -> list[bytes]:
            seen, version = [], 0
            while b"last" not in seen:
                entry = (await store.changed({"progress": version}))["progress"]
                assert entry is not None
                seen.append(entry.value)
                version = entry.version
            return seen

        following = asyncio.create_task(follow())
        await heard(server, 1)
        for value in [b"%d" % number for number in range(50)] + [b"last"]:
            await writer.write([Write("progress", value)])

        assert (await soon(following))[-1] == b"last"
        await heard(server, 0)
        assert calls(server, "ssubscribe", "sunsubscribe") == [1, 1]


async def test_cancelled_waits_leave_nothing_behind(server: RedisServer):
    async with opened(server.url) as store:
        waits = [wait(store, shared=0, **{f"key{number}": 0}) for number in range(100)]
        await heard(server, 101)
        before = len(asyncio.all_tasks())
        for waiting in waits:
            waiting.cancel()
        await asyncio.wait(waits)

        await heard(server, 0)
        assert len(asyncio.all_tasks()) < before - 100
        assert store._server.link._listeners == {}


async def test_large_values_come_in_answers_that_are_bounded(server: RedisServer):
    async with opened(server.url) as store:
        for number in range(30):
            await store.write([Write(f"large{number}", b"x" * 1_000_000)])

        found = await soon(store.changed({f"large{number}": 0 for number in range(30)}))

        assert len(found) == 30


# -- what is told -----------------------------------------------------------------------------------------------------


async def test_each_wait_for_a_key_is_told_by_the_version_that_it_knows(server: RedisServer):
    async with opened(server.url) as store:
        await store.write([Write("key", b"one")])
        await store.write([Write("key", b"two")])
        waits = [wait(store, key=version) for version in (0, 1, 2)]

        for waiting in waits[:2]:
            assert await soon(waiting) == {"key": Entry(b"two", 2)}
        assert not waits[2].done()
        await store.write([Write("key", None)])
        assert await soon(waits[2]) == {"key": None}


async def test_a_wait_that_is_lost_on_the_way_is_made_good_by_the_next_beat(server: RedisServer):
    """Such as a flush, of which nobody is told."""
    clock = VirtualClock()
    async with opened(server.url, clock) as store:
        await store.write([Write("key", b"one")])
        waiting = wait(store, key=1)
        await heard(server, 1)
        await looked(store)
        server.says("FLUSHALL")

        clock.advance_to(clock.time() + 10)

        assert await soon(waiting) == {"key": None}


# -- connections ------------------------------------------------------------------------------------------------------


async def test_what_is_written_while_the_connection_is_cut_is_found_on_the_next_one(server: RedisServer):
    clock = VirtualClock()  # it stands still, so that no beat can help
    with Proxy(server.port) as proxy:
        async with opened(f"redis://127.0.0.1:{proxy.port}", clock) as store, opened(server.url, clock) as writer:
            for version in range(10):
                waiting = wait(store, key=version)
                await heard(server, 1)
                await looked(store)
                cutting = asyncio.create_task(asyncio.to_thread(proxy.cut))
                await writer.write([Write("key", b"x")])
                found = await soon(waiting)
                assert found == {"key": Entry(b"x", version + 1)}
                await cutting


async def test_a_wait_raises_when_the_server_goes_away_and_a_later_one_works_again(server: RedisServer):
    async with opened(server.url) as store:
        waits = [wait(store, **{f"key{number}": 0}) for number in range(3)]
        await heard(server, 3)
        server.kill()
        for waiting in waits:
            with pytest.raises(BrokerUnavailable):
                await soon(waiting)
        with pytest.raises(BrokerUnavailable):
            await soon(store.changed({"key": 0}))

        server.start()
        waiting = wait(store, key=0)
        await heard(server, 1)
        await store.write([Write("key", b"again")])

        assert await soon(waiting) == {"key": Entry(b"again", 1)}


async def test_closing_the_store_ends_its_waits(server: RedisServer):
    async with opened(server.url) as store:
        waiting = wait(store, key=0)
        await heard(server, 1)
    with pytest.raises(NotConnected):
        await soon(waiting)
