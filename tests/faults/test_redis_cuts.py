"""Connections between workers, publisher and server that are cut all the time: each message is accounted for."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

import pytest

from carteiro.engine.publisher import Publisher
from carteiro.message import Outgoing
from carteiro.ports.clock import SYSTEM_CLOCK
from carteiro.ports.registry import open_backend
from tests.faults.load import OPTIONS, WORKERS, Load
from tests.faults.scene import PATIENCE, WORK, scene
from tests.servers.proxy import Proxy
from tests.servers.redis import RedisServer

EVERY = 0.15
"""Seconds from one cut to the next, on average."""


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    with Proxy(redis_server.port) as proxy:
        yield proxy


@pytest.mark.slow
async def test_6000_messages_through_4_workers_whose_connections_are_cut_at_random(
    redis_url: str, redis_server: RedisServer, proxy: Proxy
) -> None:
    await pass_through_cuts(redis_url, redis_server, proxy, messages=6_000, seconds=8.0)


@pytest.mark.soak
async def test_50000_messages_through_4_workers_whose_connections_are_cut_at_random_for_a_minute(
    redis_url: str, redis_server: RedisServer, proxy: Proxy
) -> None:
    faulthandler.cancel_dump_traceback_later()  # it waits for events that have guards of their own
    await pass_through_cuts(redis_url, redis_server, proxy, messages=50_000, seconds=60.0)


async def pass_through_cuts(url: str, server: RedisServer, proxy: Proxy, *, messages: int, seconds: float) -> None:
    through = url.replace(f":{server.port}/", f":{proxy.port}/")
    async with scene(through, eyes=url) as here, here.crew(WORKERS, OPTIONS) as crew, publishing_to(through) as publish:
        await here.wait(crew.ready(), "the workers to be ready")
        load = Load(here, publish)
        proxy.cut_at_random(EVERY)
        async with asyncio.TaskGroup() as group:
            cutting = group.create_task(cut_all_now_and_then(proxy))
            await load.publish(messages, over=seconds)
            cutting.cancel()
        proxy.heal()
        await load.until_ended()

        await load.check()
        assert load.unknown == []
        assert proxy.cuts > seconds
        assert crew.deaths == 0


async def cut_all_now_and_then(proxy: Proxy) -> None:
    while True:
        await asyncio.sleep(random.uniform(0.5, 2))
        proxy.cut()


@contextlib.asynccontextmanager
async def publishing_to(url: str) -> AsyncIterator[Callable[[Sequence[Outgoing]], Awaitable[object]]]:
    """As an app publishes: each message by itself, tried again until it is there."""
    broker = open_backend(url).broker
    await broker.connect()
    await broker.declare([WORK])
    publisher = Publisher(broker, (), SYSTEM_CLOCK, PATIENCE)

    async def publish(messages: Sequence[Outgoing]) -> None:
        await asyncio.gather(*map(publisher.publish, messages))

    yield publish
    await broker.close()
