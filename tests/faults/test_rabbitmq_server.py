"""The server dies, stands still, throws everyone out or runs short under load: what it confirmed is there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest

from carteiro.message import Subscription
from tests.faults.load import ATTEMPTS, OPTIONS, WORKERS, Load
from tests.faults.scene import WORK, Queues, Scene, scene
from tests.faults.worker import Options, Task
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import with_query

pytestmark = pytest.mark.needs("rabbitmq")

MESSAGES = 2_000
SECONDS = 4.0


@pytest.fixture
def system() -> str:
    return "rabbitmq"


@pytest.fixture(scope="module")
def server() -> Iterator[RabbitServer]:
    with RabbitServer() as server:
        yield server


@pytest.fixture
def queues(server: RabbitServer, request: pytest.FixtureRequest) -> Queues:
    return Queues(server, "/", f"t{abs(hash(request.node.name)) % 10**8}")


@pytest.fixture
def url(queues: Queues) -> str:
    return with_query(queues.server.url, prefix=queues.prefix, timeout="5", connect_timeout="2", heartbeat="1")


@pytest.mark.slow
async def test_a_server_killed_stopped_frozen_emptied_of_clients_and_short_of_memory_under_load_loses_nothing(
    server: RabbitServer, url: str, queues: Queues
) -> None:
    async with scene(url, queues=queues) as here, here.crew(WORKERS, OPTIONS) as crew:
        await here.wait(crew.ready(), "the workers to be ready")
        await old_letters(here)
        await asyncio.to_thread(server.sync)
        load = Load(here, here.broker.publish)
        async with asyncio.TaskGroup() as group:
            publishing = group.create_task(load.publish(MESSAGES, over=SECONDS))
            for sixth, harm in enumerate((killed, closed, stopped, frozen, short_of_memory), 1):
                await load.until_acknowledged(sixth * MESSAGES // 6)
                await asyncio.to_thread(harm, server)
            await publishing
        await load.until_ended()

        await load.check()
        assert load.unknown, "the server was never missed"
        assert crew.deaths == 0


async def old_letters(here: Scene) -> None:
    """Have the queue of dead letters made now: in its first half second a kill of the server would lose it."""
    await here.publish(Task(fails=ATTEMPTS))
    await here.until_dead(1)
    assert await here.inspector.purge_dead("dlq_work") == 1


def killed(server: RabbitServer) -> None:
    server.kill()
    server.start()


def closed(server: RabbitServer) -> None:
    with contextlib.suppress(RuntimeError):  # some of its channels take their time to end
        server.close_all_connections()


def stopped(server: RabbitServer) -> None:
    server.restart()


def frozen(server: RabbitServer) -> None:
    """For longer than two heartbeats of a second."""
    server.freeze()
    try:
        asyncio.run(asyncio.sleep(4))
    finally:
        server.thaw()


def short_of_memory(server: RabbitServer) -> None:
    server.raise_memory_alarm()
    server.clear_memory_alarm()


async def test_what_was_claimed_for_a_fetch_that_nobody_awaits_any_more_is_handed_back_by_close(
    url: str, queues: Queues
) -> None:
    async with scene(url, queues=queues) as here:
        long = Subscription(WORK.topic, WORK.group, lease=60)
        consumer = here.broker.consume([long])
        (order,) = await here.publish(Task())
        fetch = asyncio.create_task(consumer.fetch({long: 1}))
        await asyncio.sleep(0)
        fetch.cancel()
        await asyncio.wait([fetch])
        await here.wait(consumer.close(), "the consumer to close")

        assert await here.waiting(1) == [(order, 1)]


async def test_what_a_worker_had_only_prefetched_has_lost_no_attempt_when_it_stops(url: str, queues: Queues) -> None:
    async with scene(url, queues=queues) as here:
        orders = await here.publish(*(Task(do="wait") for _ in range(50)))
        worker = await here.worker(Options(lease=60, concurrency=1, grace=0))
        await here.wait(worker.tells("handling"), "the first message to be handled")
        worker.terminate()
        assert await here.wait(worker.ended(), "the worker to end") == 0

        assert await here.waiting(50) == sorted((order, 1) for order in orders)


async def test_attempts_are_counted_over_delays_crashes_and_a_restart_of_the_server(
    server: RabbitServer, url: str, queues: Queues
) -> None:
    async with scene(url, queues=queues) as here:
        options = Options(lease=60, attempts=5, backoff=0.1)
        (order,) = await here.publish(Task(fails=2, do="kill"))
        first = await here.worker(options)
        await here.wait(first.ended(), "the third attempt to kill its worker")
        assert [event["attempt"] for event in first.told("handling")] == [1, 2, 3]
        await asyncio.to_thread(server.restart)

        second = await here.worker(options)
        await here.wait(second.ended(), "the fourth attempt to kill its worker")
        assert second.told("handling") == [{"event": "handling", "id": order, "attempt": 4}]

        third = await here.worker(options)
        await here.wait(third.ended(), "the last attempt to kill its worker")
        last = await here.worker(options)
        await here.until_dead(1)
        await here.check(done=0, dead=1)
        (letter,) = await here.inspector.dead_letters()
        assert [failure.attempt for failure in letter.history] == [1, 2, 5]

        assert await here.inspector.replay(letter.queue) == 1
        await here.wait(last.tells("handling", id=order, attempt=1), "what was replayed to begin anew")
