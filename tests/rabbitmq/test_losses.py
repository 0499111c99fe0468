"""A server that is stopped, killed, frozen or short of memory: what it confirmed is there, and everything goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from carteiro import BrokerUnavailable, Carteiro
from carteiro.message import Action, Subscription
from tests.rabbitmq.stage import (
    ORDERS,
    Handled,
    Operator,
    Told,
    connected,
    outgoing,
    patiently,
    settle,
    shop,
    soon,
    take,
    until,
    with_query,
    working,
)
from tests.servers.rabbitmq import Program, RabbitServer, programs

pytestmark = pytest.mark.needs("rabbitmq")


@pytest.fixture(scope="module")
def server() -> Iterator[RabbitServer]:
    with RabbitServer() as started:
        yield started


@pytest.fixture
def url(server: RabbitServer, request: pytest.FixtureRequest) -> str:
    """With a prefix of the test's own."""
    if not server.is_running:
        server.start()
    return with_query(server.url, prefix=f"t{abs(hash(request.node.name)) % 10**8}")


# -- stopped and killed -----------------------------------------------------------------------------------------------


async def test_what_was_confirmed_before_a_kill_is_handled_after_it(server: RabbitServer, url: str):
    handled = Handled()
    app = shop(url, handled, publish_timeout=60, breaker=None)
    published: list[int] = []

    async def publish() -> None:
        for start in range(0, 2000, 20):
            await asyncio.gather(*(app.publish("orders", number) for number in range(start, start + 20)))
            published.extend(range(start, start + 20))
            if start == 400:
                killed.set()
                await back.wait()

    killed, back = asyncio.Event(), asyncio.Event()
    async with working(app):
        await asyncio.to_thread(server.sync)
        publishing = asyncio.create_task(publish())
        await killed.wait()
        server.kill()
        with pytest.raises(BrokerUnavailable, match=rf"127.0.0.1:{server.port}"):
            await app.connection.broker.publish([outgoing(b"0")])
        back.set()
        await asyncio.to_thread(server.start)
        await soon(publishing)
        await handled.all_of(published)
        await _is_empty(server, app)
    assert len(published) == 2000


async def _is_empty(server: RabbitServer, app: Carteiro) -> None:
    operator = Operator(server, app.connection.broker)  # type: ignore[arg-type]

    async def empty() -> bool:
        return await operator.messages(operator.queue()) == 0

    await until(empty)


async def test_a_publish_waits_for_its_timeout_and_then_raises_with_the_servers_name(server: RabbitServer, url: str):
    app = shop(url, Handled(), publish_timeout=0.3)
    async with app:
        await asyncio.to_thread(server.stop)
        with pytest.raises(BrokerUnavailable, match=f"no RabbitMQ at `amqp://127.0.0.1:{server.port}.*start it"):
            await app.publish("orders", 1)


async def test_a_worker_stops_in_good_order_while_its_server_is_away(server: RabbitServer, url: str):
    app = shop(url, Handled(), grace=0.1)
    async with working(app):
        await asyncio.to_thread(server.stop)


async def test_a_worker_a_request_and_a_broadcast_survive_a_restart(server: RabbitServer, url: str):
    """Broadcast and reply queues are in memory only: they are made again."""
    heard, handled = Handled(), Handled()
    app = shop(url, handled, breaker=None)

    @app.subscriber("news", group=None)
    async def hear(text: str) -> None:
        heard.note(text)

    @app.subscriber("greet")
    async def greet(name: str) -> str:
        return f"hello, {name}"

    asker = Carteiro("asker", url, breaker=None)
    async with working(app), asker:
        assert await soon(asker.request("greet", "Ana")) == "hello, Ana"
        await asker.publish("news", "before")
        await heard.all_of(["before"])

        await asyncio.to_thread(server.restart)

        assert await soon(asker.request("greet", "Eva", timeout=25)) == "hello, Eva"
        await until(_has_consumers(app, "orders"))
        await asker.publish("news", "after", mandatory=True)
        await heard.all_of(["after"])
        await asker.publish("orders", 1)
        await handled.all_of([1])


def _has_consumers(app: Carteiro, topic: str):
    async def has() -> bool:
        groups = await patiently(app.connection.broker.groups)  # type: ignore[attr-defined]
        return any(status.consumers for status in groups if status.topic == topic)

    return has


@pytest.mark.parametrize("program", programs(), ids=lambda program: program.name)
async def test_what_falls_due_while_a_server_starts_comes_to_all_groups_once_someone_is_connected(program: Program):
    """A server that starts has its queues give up what is due before it has all bindings again."""
    groups = [Subscription("orders", group, lease=60.0) for group in ("audit", "shop", "stock")]
    with RabbitServer(program=program) as server:
        async with connected(server.url, *groups) as broker:
            queues = [Operator(server, broker).queue(group) for group in groups]
            await asyncio.to_thread(server.sync)
            await broker.publish([outgoing(b"%d" % number, delay=1.6) for number in range(20)])
            server.kill()
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(server.until, lambda: "Cannot forward" in server.log(), "with something that is due")

        async def has_come(count: int) -> bool:
            counts = await asyncio.to_thread(server.messages)
            return [counts[queue] for queue in queues] == [count] * 3

        assert await has_come(0)
        async with connected(server.url):
            await until(lambda: has_come(20))


async def test_a_process_that_only_publishes_goes_on_over_a_restart(server: RabbitServer, url: str):
    handled = Handled()
    app = shop(url, handled, publish_timeout=60, breaker=None)
    async with app:
        await app.publish("orders", 1)
        await asyncio.to_thread(server.restart)
        await app.publish("orders", 2)
    async with working(app):
        await handled.all_of([1, 2])
    assert handled.counts.total() == 2


# -- frozen -----------------------------------------------------------------------------------------------------------


async def test_a_frozen_server_is_given_up_by_every_call_and_works_on_when_it_thaws(server: RabbitServer, url: str):
    async with connected(with_query(url, timeout="0.5", connect_timeout="0.5", heartbeat="1"), ORDERS) as broker:
        consumer = broker.consume([ORDERS])
        await broker.publish([outgoing(b"before")])
        held = await take(consumer)
        idle = asyncio.ensure_future(consumer.fetch({ORDERS: 1}))
        await asyncio.sleep(0)
        server.freeze()
        try:
            calls = {
                "publish": broker.publish([outgoing(b"frozen")]),
                "settle": settle(consumer, held, Action.RETRY),
                "declare": broker.declare([Subscription("news", "shop")]),
                "groups": broker.groups(),
                "fetch": idle,
            }
            results = await soon(asyncio.gather(*calls.values(), return_exceptions=True))
            for name, error in zip(calls, results, strict=True):
                assert isinstance(error, BrokerUnavailable), f"{name}: {error!r}"
                assert f"127.0.0.1:{server.port}" in str(error), f"{name}: {error}"
            with pytest.raises(BrokerUnavailable, match=r"no answer within 0.5 s"):
                await broker.publish([outgoing(b"frozen")])
        finally:
            server.thaw()
        await patiently(lambda: broker.publish([outgoing(b"after")]))
        bodies: set[bytes] = set()
        while not bodies >= {b"before", b"after"}:
            taken = await take(consumer)
            bodies |= {one.message.body for one in taken}
            await settle(consumer, taken)


# -- short of memory --------------------------------------------------------------------------------------------------


async def test_a_server_short_of_memory_has_publishers_wait_and_consumers_go_on(
    server: RabbitServer, url: str, caplog: pytest.LogCaptureFixture
):
    told = Told(caplog)
    handled, go_on = Handled(), asyncio.Event()
    app = Carteiro("shop", url, breaker=None)

    @app.subscriber("orders", concurrency=2)
    async def handle(number: int) -> None:
        await go_on.wait()
        handled.note(number)

    async with working(app):
        await app.publish_many("orders", range(100))
        await asyncio.to_thread(server.raise_memory_alarm)
        try:
            publishing = asyncio.create_task(app.publish("orders", 100))
            later = asyncio.create_task(app.publish("orders", 101))
            await told.of("takes no more messages for now: low on memory")
            go_on.set()
            await handled.all_of(range(100))
            assert 101 not in handled.counts
            await _holds_at_most(server, app, 1)  # their acks went through: it has at most what passed before the block
            with pytest.raises(BrokerUnavailable, match=r"takes no messages now.*low on memory"):
                await app.connection.broker.publish([outgoing(b"102")])
        finally:
            await asyncio.to_thread(server.clear_memory_alarm)
        await soon(asyncio.gather(publishing, later))
        await handled.all_of(range(102))
        await told.of("takes messages again")


async def _holds_at_most(server: RabbitServer, app: Carteiro, count: int) -> None:
    operator = Operator(server, app.connection.broker)  # type: ignore[arg-type]

    async def holds() -> bool:
        return await operator.messages(operator.queue()) <= count

    await until(holds)


async def test_who_waits_in_vain_for_a_server_short_of_memory_is_told_of_it(server: RabbitServer, url: str):
    app = shop(with_query(url, timeout="0.3"), Handled(), publish_timeout=0.3)
    async with app:
        await app.publish("orders", 1)
        await asyncio.to_thread(server.raise_memory_alarm)
        try:
            with pytest.raises(BrokerUnavailable, match=r"short of something .low on memory"):
                await soon(app.publish_many("orders", range(2, 5)))
            with pytest.raises(BrokerUnavailable, match="takes no messages now"):
                await soon(app.publish("orders", 5))
        finally:
            await asyncio.to_thread(server.clear_memory_alarm)
        await patiently(lambda: app.publish("orders", 6))


async def test_a_worker_starts_and_empties_its_queue_while_the_server_is_short_of_memory(
    server: RabbitServer, url: str
):
    handled = Handled()
    async with shop(url, handled) as publisher:
        await publisher.publish_many("orders", range(10))
    await asyncio.to_thread(server.raise_memory_alarm)
    try:
        async with working(shop(url, handled)):
            await handled.all_of(range(10))
    finally:
        await asyncio.to_thread(server.clear_memory_alarm)
