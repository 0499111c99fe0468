"""Connections between workers, publisher and server that are cut all the time: each message is accounted for."""

from __future__ import annotations

import asyncio
import faulthandler
from collections.abc import Iterator

import pytest

from tests.faults.load import OPTIONS, WORKERS, Load
from tests.faults.scene import Queues, scene
from tests.faults.test_redis_cuts import cut_all_now_and_then, publishing_to
from tests.servers.proxy import Proxy

EVERY = 0.3
"""Seconds from one cut to the next, on average. On RabbitMQ each costs what its connection had claimed an attempt."""


@pytest.fixture
def system() -> str:
    return "rabbitmq"


@pytest.fixture
def proxy(queues: Queues) -> Iterator[Proxy]:
    with Proxy(queues.server.port) as proxy:
        yield proxy


@pytest.mark.slow
async def test_2000_messages_through_4_workers_whose_connections_are_cut_at_random(
    url: str, queues: Queues, proxy: Proxy
) -> None:
    await pass_through_cuts(url, queues, proxy, messages=2_000, seconds=5.0)


@pytest.mark.soak
async def test_30000_messages_through_4_workers_whose_connections_are_cut_at_random_for_a_minute(
    url: str, queues: Queues, proxy: Proxy
) -> None:
    faulthandler.cancel_dump_traceback_later()  # it waits for events that have guards of their own
    await pass_through_cuts(url, queues, proxy, messages=30_000, seconds=60.0)


async def pass_through_cuts(url: str, queues: Queues, proxy: Proxy, *, messages: int, seconds: float) -> None:
    through = url.replace(f":{queues.server.port}/", f":{proxy.port}/")
    async with (
        scene(through, eyes=url, queues=queues) as here,
        here.crew(WORKERS, OPTIONS) as crew,
        publishing_to(through) as publish,
    ):
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
