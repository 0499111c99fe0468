"""A handler that takes longer than the server's consumer_timeout."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from operator import attrgetter

import pytest

from carteiro import Carteiro, Message, Retry
from tests.rabbitmq.stage import Handled, Told, connected, soon, with_query, working
from tests.servers.rabbitmq import Program, RabbitServer, programs

pytestmark = pytest.mark.needs("rabbitmq")

TIMEOUT = 2.0
OLD = [program for program in programs() if program.version < (3, 12)]
NAME = attrgetter("name")
NEW = [program for program in programs() if program.version >= (3, 12)]


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[RabbitServer]:
    """It looks for handlers that take too long each half second, and not each minute."""
    program: Program = request.param
    with RabbitServer(program=program, config=[f"consumer_timeout = {TIMEOUT * 1000:.0f}"]) as started:
        started.evaluate("application:set_env(rabbit, channel_tick_interval, 500)")
        yield started


def slow_app(url: str, handled: Handled, attempts: list[int], until: dict[int, asyncio.Event]) -> Carteiro:
    app = Carteiro("shop", url, retry=Retry(attempts=9))

    @app.subscriber("orders", concurrency=5)
    async def handle(number: int, message: Message) -> None:
        if number == 0:
            attempts.append(message.attempt)
        if (waits := until.get(number)) is not None:
            await waits.wait()
        handled.note(number)

    return app


@pytest.mark.skipif(not OLD, reason="there is no RabbitMQ before 3.12 here")
@pytest.mark.parametrize("server", OLD, ids=NAME, indirect=True)
async def test_before_3_12_the_server_takes_back_what_takes_too_long_and_the_worker_says_so_and_goes_on(
    server: RabbitServer, caplog: pytest.LogCaptureFixture
):
    told = Told(caplog)
    attempts: list[int] = []
    handled, release = Handled(), asyncio.Event()
    app = slow_app(server.url, handled, attempts, {0: release})
    async with working(app):
        await app.publish("orders", 0)
        line = await told.of("consumer_timeout")
        assert "raise that on the server, or move to RabbitMQ 3.12" in line
        await app.publish_many("orders", range(1, 20))
        await handled.all_of(range(1, 20))
        release.set()
        await handled.all_of([0])
        while len(attempts) < 2:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.01)
    assert attempts[:2] == [1, 2]
    async with connected(server.url) as broker:
        assert await broker.dead_letters() == []


@pytest.mark.skipif(not NEW, reason="there is no RabbitMQ from 3.12 on here")
@pytest.mark.parametrize("server", NEW, ids=NAME, indirect=True)
async def test_from_3_12_on_the_servers_consumer_timeout_is_not_for_carteiros_queues(
    server: RabbitServer, caplog: pytest.LogCaptureFixture
):
    told = Told(caplog)
    attempts: list[int] = []
    handled, release = Handled(), asyncio.Event()
    app = slow_app(server.url, handled, attempts, {0: release})
    async with working(app), connected(with_query(server.url, prefix="other")):
        await app.publish("orders", 0)
        await asyncio.sleep(3 * TIMEOUT)  # in which the server has looked a few times
        release.set()
        await handled.all_of([0])
        await soon(app.publish("orders", 1))
        await handled.all_of([1])
    assert attempts == [1]
    assert told.lines("consumer_timeout") == []
