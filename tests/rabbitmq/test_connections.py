"""Connections and channels that end, by the server's hand or by the network's: everything goes on, nothing is lost."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, cast

import pytest
from pamqp import base, commands

from carteiro import BrokerUnavailable, Carteiro, NotConnected
from carteiro.backends.rabbitmq import RabbitBroker, RabbitConsumer, methods
from carteiro.backends.rabbitmq.channel import Channel
from carteiro.backends.rabbitmq.feed import Feed
from carteiro.backends.rabbitmq.link import Link
from carteiro.backends.rabbitmq.register import put
from carteiro.message import Action, Outcome, Subscription
from carteiro.ports.clock import SYSTEM_CLOCK, Clock
from tests.rabbitmq.stage import (
    ORDERS,
    Handled,
    Operator,
    Told,
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
    with_query,
    working,
)
from tests.servers.process import free_port
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import RabbitServer

pytestmark = pytest.mark.needs("rabbitmq")

DONE = Subscription("done", "audit", lease=60.0)


@pytest.fixture
def proxy(rabbitmq_server: RabbitServer) -> Iterator[Proxy]:
    with Proxy(rabbitmq_server.port) as started:
        yield started


@pytest.fixture
def through(rabbitmq_url: str, rabbitmq_server: RabbitServer, proxy: Proxy) -> str:
    """The session's server by way of the proxy, with a prefix of the test's own."""
    return rabbitmq_url.replace(f":{rabbitmq_server.port}/", f":{proxy.port}/")


async def _all_ended(server: RabbitServer, app: Carteiro, handled: Handled, published: Iterable[int]) -> None:
    """Each was handled, or, as all that was claimed when a connection broke has lost an attempt, is dead of that."""
    broker = app.connection.broker
    assert isinstance(broker, RabbitBroker)
    operator = Operator(server, broker)
    dead: set[int] = set()

    async def ended() -> bool:
        letters = await patiently(broker.dead_letters)
        assert {letter.reason.partition(":")[0] for letter in letters} <= {"WorkerLost"}
        dead.update(int(letter.message.body) for letter in letters)
        return handled.counts.keys() | dead >= set(published) and await operator.messages(operator.queue()) == 0

    await until(ended)


# -- closed by the server ---------------------------------------------------------------------------------------------


async def test_all_connections_closed_by_the_server_again_and_again_lose_nothing(
    each_rabbitmq_server: RabbitServer, each_rabbitmq_url: str, caplog: pytest.LogCaptureFixture
):
    told = Told(caplog)
    handled = Handled()
    app = shop(each_rabbitmq_url, handled, breaker=None)
    async with working(app):
        for start in range(0, 2000, 100):
            publishing = asyncio.gather(*(app.publish("orders", number) for number in range(start, start + 100)))
            if start % 500 == 0:
                await asyncio.to_thread(each_rabbitmq_server.close_all_connections, "maintenance")
            await soon(publishing)
        await _all_ended(each_rabbitmq_server, app, handled, range(2000))
    assert "someone has closed the connection (CONNECTION_FORCED - maintenance)" in await told.of("CONNECTION_FORCED")


async def test_each_connection_of_a_worker_may_be_closed_alone(rabbitmq_server: RabbitServer, rabbitmq_url: str):
    handled = Handled()
    app = shop(rabbitmq_url, handled, breaker=None)
    async with working(app):
        for number, purpose in enumerate(("consuming", "publishing", "consuming", "publishing")):
            await until(_closed(rabbitmq_server, f"carteiro {_prefix(rabbitmq_url)} {purpose}"))
            await app.publish("orders", number)
            await handled.all_of([number])


def _prefix(url: str) -> str:
    return url.rpartition("prefix=")[2]


def _closed(server: RabbitServer, name: str) -> Callable[[], Awaitable[bool]]:
    """Closes the connection that calls itself so; whether there was one."""
    expression = (
        '[rabbit_networking:close_connection(Pid, "by a test") || Pid <- rabbit_networking:local_connections(), '
        "{client_properties, [_ | _] = Properties} <- rabbit_reader:info(Pid, [client_properties]), "
        f'lists:keyfind(<<"connection_name">>, 1, Properties) =:= {{<<"connection_name">>, longstr, <<"{name}">>}}]'
    )

    async def closed() -> bool:
        return await asyncio.to_thread(server.evaluate, expression) == "[ok]"

    return closed


# -- a channel alone --------------------------------------------------------------------------------------------------


async def test_a_channel_that_a_bad_ack_has_closed_is_opened_again_and_what_it_held_comes_again(rabbitmq_url: str):
    async with connected(rabbitmq_url, ORDERS) as broker:
        consumer = broker.consume([ORDERS])
        await broker.publish([outgoing(b"%d" % number) for number in range(3)])
        held = await take(consumer, 3)
        _ack_what_never_was(consumer)
        lost = await soon(_lost(consumer, held[:1]))
        assert lost == held[:1]
        again = await take(consumer, 3)
        assert sorted((one.message.body, one.message.attempt) for one in again) == [(b"0", 2), (b"1", 2), (b"2", 2)]
        assert await settle(consumer, held) == held
        assert await settle(consumer, again) == []


def _ack_what_never_was(consumer: RabbitConsumer) -> None:
    channel = consumer._feeds[ORDERS]._channel
    assert channel is not None
    channel.write(channel.ack(10**6))


async def _lost(consumer: RabbitConsumer, deliveries):
    while not (lost := await consumer.renew(deliveries)):  # noqa: ASYNC110 (nobody tells)
        await asyncio.sleep(0.01)
    return lost


async def test_a_consumer_whose_connection_ends_with_the_answer_that_opened_its_channel_comes_back(
    rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
):
    async with connected(rabbitmq_url, ORDERS) as broker:
        consumer = broker.consume([ORDERS])
        await broker.publish([outgoing(b"hello")])
        _end_with(monkeypatch, commands.Channel.OpenOk, 2)  # the first channel makes again what a restart has lost
        with pytest.raises(BrokerUnavailable, match="ended by a test"):
            await soon(consumer.fetch({ORDERS: 1}))
        assert [one.message.body for one in await soon(take(consumer))] == [b"hello"]


async def test_who_publishes_on_a_connection_that_ends_with_the_answer_that_opened_it_is_told_at_once(
    rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
):
    async with connected(with_query(rabbitmq_url, timeout="60"), ORDERS) as broker:
        _end_with(monkeypatch, commands.Confirm.SelectOk, 1)
        with pytest.raises(BrokerUnavailable, match="ended by a test"):
            await soon(broker.publish([outgoing()]))
        assert await broker.publish([outgoing()]) == []


def _end_with(monkeypatch: pytest.MonkeyPatch, kind: type[base.Frame], number: int) -> None:
    """Have a connection end in the same segment as the so-manieth answer of this kind: nobody runs in between."""
    answer, counted = Channel._answer, itertools.count(1)

    def answered(self: Channel, value: object) -> None:
        answer(self, value)
        if isinstance(value, kind) and next(counted) == number:
            self.link.abort("ended by a test")

    monkeypatch.setattr(Channel, "_answer", answered)


async def test_a_worker_whose_channel_is_closed_says_so_and_goes_on(
    rabbitmq_url: str, rabbitmq_server: RabbitServer, caplog: pytest.LogCaptureFixture
):
    told = Told(caplog)
    handled = Handled()
    app = shop(rabbitmq_url, handled)
    async with working(app):
        await app.publish("orders", 1)
        await handled.all_of([1])
        assert app.worker is not None
        _ack_what_never_was(app.worker._consumer)  # type: ignore[arg-type]
        await told.of("PRECONDITION_FAILED - unknown delivery tag 1000000")
        await app.publish("orders", 2)
        await handled.all_of([2])


# -- cut by the network -----------------------------------------------------------------------------------------------


async def test_a_cut_in_the_middle_of_a_publish_loses_nothing(through: str, proxy: Proxy):
    async with connected(through, ORDERS) as broker:
        messages = [outgoing(b"%d" % number + b"x" * 1000) for number in range(800)]
        proxy.cut_at_random(every=0.03, seed=3)
        cuts = 0
        left = messages
        while left:
            try:
                await soon(broker.publish(left[:200]))
                left = left[200:]
            except BrokerUnavailable:
                cuts += 1
        proxy.heal()
        assert cuts > 0
        consumer = broker.consume([ORDERS])
        found: set[str] = set()
        while len(found) < len(messages):
            taken = await take(consumer)
            found |= {one.message.id for one in taken}
            await settle(consumer, taken)
        assert found == {message.id for message in messages}


async def test_what_an_outcome_publishes_is_out_before_its_ack_also_over_cuts(
    through: str, proxy: Proxy, rabbitmq_url: str
):
    """Each message emits one: none of them is lost, and what is doubled has the same id."""
    count = 1000
    async with connected(through, ORDERS) as broker, connected(rabbitmq_url, DONE) as eyes:
        await broker.publish([outgoing(b"%d" % number, id=f"{number}") for number in range(count)])
        proxy.cut_at_random(every=0.05, seed=4)
        emitting = asyncio.create_task(_emit_for_each(broker))
        collector = eyes.consume([DONE])
        emitted: set[str] = set()
        while len(emitted) < count:
            taken = await take(collector, subscription=DONE)
            emitted |= {one.message.id for one in taken}
            await settle(collector, taken)
        emitting.cancel()
        await asyncio.wait([emitting])
        proxy.heal()
        assert emitted == {f"of-{number}" for number in range(count)}
        assert proxy.cuts > 0


async def _emit_for_each(broker: RabbitBroker) -> None:
    consumer = broker.consume([ORDERS])
    while True:
        taken = await patiently(lambda: consumer.fetch({ORDERS: 50}))
        outcomes = [Outcome(one, Action.ACK, emits=[outgoing(b"", "done", id=f"of-{one.message.id}")]) for one in taken]
        await patiently(lambda outcomes=outcomes: consumer.settle(outcomes))  # type: ignore[misc]


async def test_a_worker_goes_on_through_cuts_at_random_and_loses_nothing(
    through: str, proxy: Proxy, rabbitmq_server: RabbitServer
):
    handled = Handled()
    app = shop(through, handled, breaker=None)
    async with working(app):
        proxy.cut_at_random(every=0.2, seed=7)
        for start in range(0, 2000, 50):
            await asyncio.gather(*(app.publish("orders", number) for number in range(start, start + 50)))
        proxy.heal()
        await _all_ended(rabbitmq_server, app, handled, range(2000))
    assert proxy.cuts > 0


async def test_an_idle_consumer_is_woken_by_what_is_published_after_a_cut(
    through: str, rabbitmq_url: str, proxy: Proxy
):
    async with connected(through, ORDERS) as broker, connected(rabbitmq_url) as publisher:
        consumer = broker.consume([ORDERS])
        for body in (b"one", b"two"):
            idle = asyncio.ensure_future(consumer.fetch({ORDERS: 1}))
            await until(lambda: _consumes(publisher))
            proxy.cut()
            with pytest.raises(BrokerUnavailable, match="lost `amqp://"):
                await soon(idle)
            idle = asyncio.ensure_future(consumer.fetch({ORDERS: 1}))
            await publisher.publish([outgoing(body)])
            (delivery,) = await soon(idle)
            assert delivery.message.body == body
            await settle(consumer, [delivery])


async def test_a_connection_that_is_lost_as_consuming_begins_is_told_of_once(
    through: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
):
    begin = Feed.open

    async def lose_it(feed: Feed, link: Link, room: int) -> None:
        monkeypatch.undo()
        await asyncio.to_thread(proxy.cut)
        await begin(feed, link, room)

    async with connected(through, ORDERS) as broker:
        consumer = broker.consume([ORDERS])
        monkeypatch.setattr(Feed, "open", lose_it)
        with pytest.raises(BrokerUnavailable, match="lost `amqp://"):
            await soon(consumer.fetch({ORDERS: 1}))

        idle = asyncio.ensure_future(consumer.fetch({ORDERS: 1}))
        await patiently(lambda: broker.publish([outgoing(b"one")]))

        assert [delivery.message.body for delivery in await soon(idle)] == [b"one"]


class _Emptying:
    """A clock under which a queue is emptied whenever somebody waits."""

    def __init__(self, queue: str, channel: Channel) -> None:
        self._queue = queue
        self._channel = channel

    def __getattr__(self, name: str) -> Any:
        return getattr(SYSTEM_CLOCK, name)

    async def sleep(self, seconds: float) -> None:
        await self._channel.call(methods.queue_purge(self._queue))


async def test_a_note_that_the_server_refuses_for_the_moment_is_given_again(rabbitmq_url: str):
    async with connected(rabbitmq_url) as broker:
        link = await broker._server.link()
        notes, other = await link.channel(), await link.channel()
        full = {"x-max-length": 1, "x-overflow": "reject-publish"}
        name = (await other.call(methods.queue_declare("", exclusive=True, arguments=full))).queue
        await put(await link.channel(), name, b"old", SYSTEM_CLOCK)

        await put(notes, name, b"new", cast(Clock, _Emptying(name, other)))

        assert (await other.call(methods.get(name)))[5] == b"new"


async def _consumes(broker) -> bool:
    return bool((await broker.groups())[0].consumers)


async def test_a_server_that_refuses_connections_for_a_while_is_found_again(through: str, proxy: Proxy):
    async with connected(through, ORDERS) as broker:
        proxy.refuse()
        proxy.cut()
        for _ in range(2):
            with pytest.raises(BrokerUnavailable, match=r"lost `amqp|no RabbitMQ at"):
                await broker.publish([outgoing()])
        proxy.heal()
        await passes(broker)


async def test_a_server_that_is_silent_is_given_up_by_its_heartbeat(through: str, proxy: Proxy):
    async with connected(with_query(through, heartbeat="1"), ORDERS) as broker:
        consumer = broker.consume([ORDERS])
        await passes(broker)
        idle = asyncio.ensure_future(consumer.fetch({ORDERS: 1}))
        await until(lambda: _consumes(broker))
        proxy.stall()
        with pytest.raises(BrokerUnavailable, match="nothing was heard of it for"):
            await soon(idle)
        proxy.heal()
        await patiently(lambda: broker.publish([outgoing(b"after")]))
        await settle(consumer, await take(consumer))


# -- nobody spins -----------------------------------------------------------------------------------------------------


async def test_a_worker_without_its_server_tries_at_growing_intervals_and_no_loop_spins(
    through: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
):
    handled = Handled()
    app = shop(through, handled, breaker=None, publish_timeout=60)
    tries: Counter[str] = Counter()
    connect = Link._connect

    async def counted(self: Link, server) -> None:
        tries[self._purpose.rpartition(" ")[2]] += 1
        await connect(self, server)

    async with working(app):
        await app.publish("orders", 1)
        await handled.all_of([1])
        monkeypatch.setattr(Link, "_connect", counted)
        proxy.refuse()
        proxy.cut()
        waiting = [asyncio.create_task(app.publish("orders", number)) for number in range(2, 52)]
        await asyncio.sleep(3.0)
        proxy.heal()
        await soon(asyncio.gather(*waiting))
        await handled.all_of(range(52)[1:])
    # 0.1 s doubled each time, with jitter: within 3 s about six tries for each of the two connections.
    assert 2 <= tries["consuming"] <= 12
    assert 2 <= tries["publishing"] <= 12


# -- closed meanwhile -------------------------------------------------------------------------------------------------


async def test_closing_ends_the_calls_that_are_under_way_and_leaves_no_connection(
    rabbitmq_server: RabbitServer, through: str, proxy: Proxy
):
    broker = backend(with_query(through, timeout="60", connect_timeout="0.5")).broker
    await broker.connect()
    await broker.declare([ORDERS])
    proxy.stall()
    calls = [asyncio.ensure_future(broker.publish([outgoing()])) for _ in range(3)]
    await asyncio.sleep(0)
    await soon(broker.close())
    for result in await soon(asyncio.gather(*calls, return_exceptions=True)):
        assert isinstance(result, BrokerUnavailable | NotConnected), result
    with pytest.raises(NotConnected):
        await broker.publish([outgoing()])
    proxy.heal()
    await until(lambda: _gone(proxy))


async def _gone(proxy: Proxy) -> bool:
    return proxy.connections == 0


async def test_a_connect_that_is_cancelled_leaves_no_connection_behind(through: str, proxy: Proxy):
    broker = backend(through).broker
    proxy.stall()
    connecting = asyncio.ensure_future(broker.connect())
    await until(lambda: _came(proxy))
    connecting.cancel()
    await asyncio.wait([connecting])
    await soon(broker.close())
    proxy.heal()
    await until(lambda: _gone(proxy))


async def test_a_close_while_a_connection_is_made_ready_leaves_none_behind(
    rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
):
    made: asyncio.Future[Link] = asyncio.get_running_loop().create_future()

    async def make_ready(link: Link) -> None:
        made.set_result(link)
        await asyncio.Event().wait()

    broker = backend(rabbitmq_url).broker
    monkeypatch.setattr(broker._server, "make_again_what_is_in_memory", make_ready)
    connecting = asyncio.ensure_future(broker.connect())
    link = await soon(made)
    await soon(broker.close())
    await asyncio.wait([connecting])
    assert link.lost


async def _came(proxy: Proxy) -> bool:
    return proxy.connections > 0


async def test_connecting_to_nobody_can_be_tried_again():
    broker = backend(f"amqp://127.0.0.1:{free_port()}").broker
    for _ in range(2):
        with pytest.raises(BrokerUnavailable):
            await broker.connect()
    await broker.close()
    with pytest.raises(NotConnected):
        await broker.publish([outgoing()])
