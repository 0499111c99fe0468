"""The server dies under those who fire schedules: what was due meanwhile is late, and nothing is missed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.scene import Queues, scene
from tests.faults.schedule_scene import schedule_scene
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisServer, with_query

PROCESSES = 3


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer(aof="always") as server:
        yield server


@pytest.fixture
def rabbitmq() -> Iterator[RabbitServer]:
    with RabbitServer() as server:
        yield server


@pytest.mark.slow
@pytest.mark.needs("redis")
async def test_a_redis_killed_and_started_again_twice_under_schedules_delays_them_and_loses_none(
    redis: RedisServer, tmp_path: Path
) -> None:
    url = with_query(redis.url, timeout="1", connect_timeout="1")
    await outlive(redis, url, None, tmp_path, kills=2)


@pytest.mark.slow
@pytest.mark.needs("rabbitmq")
async def test_a_rabbitmq_killed_and_started_again_under_schedules_delays_them_and_loses_none(
    rabbitmq: RabbitServer, tmp_path: Path
) -> None:
    queues = Queues(rabbitmq, "/", "test")
    url = with_query(rabbitmq.url, prefix=queues.prefix, timeout="5", connect_timeout="2", heartbeat="1")
    await outlive(rabbitmq, url, queues, tmp_path, kills=1)


async def outlive(
    server: RedisServer | RabbitServer, url: str, queues: Queues | None, folder: Path, *, kills: int
) -> None:
    async with scene(url, queues=queues) as here, schedule_scene(here, folder) as beats:
        if isinstance(server, RabbitServer):
            await asyncio.to_thread(server.sync)  # in its first half second a kill would lose a queue
        async with here.crew(PROCESSES, beats.options) as crew:
            await here.wait(crew.ready(), "the processes to be ready")
            for _ in range(kills):
                await beats.until_each_fires(2)
                server.kill()
                await asyncio.to_thread(server.start)
            await beats.until_each_fires(3)
        assert crew.deaths == 0

        # What it had sent and not heard of is sent again, and what was taken and not acked comes again.
        await beats.check(repeats=True)
