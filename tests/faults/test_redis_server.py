"""The server dies, or stands still, under load: what it acknowledged is there, and everything goes on by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from carteiro.errors import NotConnected
from carteiro.message import Subscription
from tests.faults.load import OPTIONS, WORKERS, Load
from tests.faults.scene import WORK, scene
from tests.faults.worker import Options, Task
from tests.servers.redis import RedisServer, with_query

pytestmark = pytest.mark.needs("redis")

TIMEOUT = 1.0
MESSAGES = 3_000
SECONDS = 4.0


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """With `everysec` its acknowledgement may be up to two seconds ahead of its writes, while a sync takes long."""
    with RedisServer(aof="always") as server:
        yield server


@pytest.fixture
def url(server: RedisServer) -> str:
    return with_query(server.url, timeout=str(TIMEOUT), connect_timeout=str(TIMEOUT))


@pytest.mark.slow
async def test_a_server_killed_and_started_again_three_times_under_load_loses_nothing(
    server: RedisServer, url: str
) -> None:
    async with scene(url) as here, here.crew(WORKERS, OPTIONS) as crew, asyncio.TaskGroup() as group:
        await here.wait(crew.ready(), "the workers to be ready")
        load = Load(here, here.broker.publish)
        publishing = group.create_task(load.publish(MESSAGES, over=SECONDS))
        for quarter in (1, 2, 3):
            await load.until_acknowledged(quarter * MESSAGES // 4)
            server.kill()
            await asyncio.to_thread(server.start)
        await publishing
        await load.until_ended()

        await load.check()
        assert load.unknown, "the server was never missed"
        assert crew.deaths == 0


@pytest.mark.slow
async def test_a_server_that_stands_still_for_longer_than_the_timeout_under_load_loses_nothing(
    server: RedisServer, url: str
) -> None:
    async with scene(url) as here, here.crew(WORKERS, OPTIONS) as crew, asyncio.TaskGroup() as group:
        await here.wait(crew.ready(), "the workers to be ready")
        load = Load(here, here.broker.publish)
        publishing = group.create_task(load.publish(MESSAGES, over=SECONDS))
        await load.until_acknowledged(MESSAGES // 2)
        server.freeze()
        await asyncio.sleep(2.5 * TIMEOUT)
        server.thaw()
        await publishing
        await load.until_ended()

        await load.check()
        assert load.unknown, "nobody ran into the timeout"
        assert crew.deaths == 0


async def test_what_was_claimed_for_a_fetch_that_nobody_awaits_any_more_is_handed_back_by_close(
    server: RedisServer, url: str
) -> None:
    async with scene(url) as here:
        long = Subscription(WORK.topic, WORK.group, lease=60)
        consumer = here.broker.consume([long])
        (order,) = await here.publish(Task())
        server.freeze()
        fetch = asyncio.create_task(consumer.fetch({long: 1}))
        await asyncio.sleep(0)
        fetch.cancel()
        await asyncio.wait([fetch])
        server.thaw()
        await here.wait(consumer.close(), "the consumer to close")

        (waiting,) = await here.inspector.peek(WORK.topic, WORK.group)
        assert (waiting.id, waiting.attempt) == (order, 1)
        with pytest.raises(NotConnected):
            await consumer.fetch({long: 1})


async def test_a_worker_whose_clock_is_hours_ahead_takes_no_lease_from_the_others(url: str) -> None:
    async with scene(url) as here:
        worker = await here.worker(Options(lease=60, concurrency=1))
        (held,) = await here.publish(Task(do="wait"))
        await here.wait(worker.tells("handling", id=held), "the message to be handled")
        ahead = await here.worker(Options(lease=60, clock=5 * 3600.0))
        (other,) = await here.publish(Task())
        await here.wait(ahead.tells("handling", id=other), "the other worker to take what comes")
        await worker.command("go")
        await here.until_done(2)

        assert ahead.told("handling") == [{"event": "handling", "id": other, "attempt": 1}]
        await here.check(done=2)
