"""What a scan of the store asks of the server: as little as it returns, past whatever has expired."""

from __future__ import annotations

import pytest

from carteiro.backends.redis import RedisBroker
from carteiro.message import Write
from carteiro.testing.clock import VirtualClock
from tests.redis.stage import connected, soon
from tests.servers.redis import RedisServer

pytestmark = pytest.mark.needs("redis")


async def remember(broker: RedisBroker, numbers: range, ttl: float | None = None) -> None:
    await soon(broker.store.write([Write(f"due:{number:05}", b"x", ttl=ttl) for number in numbers]))


def looked_at(server: RedisServer) -> int:
    """Entries that were read, in all scripts together."""
    calls: int = server.says("INFO", "commandstats").get("cmdstat_hget", {"calls": 0})["calls"]
    return calls


@pytest.mark.parametrize("there", [10, 10_000])
async def test_the_first_of_many_costs_as_much_as_the_first_of_few(there: int):
    with RedisServer() as server:
        async with connected(server.url) as broker:
            await remember(broker, range(there))
            before = looked_at(server)

            (first,) = await soon(broker.store.scan("due:", limit=1))
            some = await soon(broker.store.scan("due:", before="due:00005", limit=500))

            assert first == "due:00000"
            assert len(some) == 5
            assert looked_at(server) - before == 6


@pytest.mark.parametrize("limit", [1, 2, 999, 1_000, 1_001, 2_000, 5_000])
async def test_thousands_that_have_expired_hide_none_that_has_not(redis_url: str, limit: int):
    clock = VirtualClock()
    async with connected(redis_url, clock=clock) as broker:
        await remember(broker, range(0, 5_000, 2), ttl=10)
        await remember(broker, range(1_001, 5_000, 2))
        clock.advance_to(clock.time() + 20)

        found = await soon(broker.store.scan("due:", limit=limit))

        assert list(found) == [f"due:{number:05}" for number in range(1_001, 5_000, 2)][:limit]
