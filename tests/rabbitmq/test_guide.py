"""What the guide says of RabbitMQ and no other test shows: names, permissions, connections, limits."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from carteiro import BrokerError, Carteiro, Message, Reject, Retry, UnsupportedFeature, constant
from carteiro.backends.rabbitmq import RabbitBroker, RabbitQueue, methods
from carteiro.backends.rabbitmq.address import parse
from carteiro.message import Subscription
from tests.rabbitmq.stage import (
    ORDERS,
    Handled,
    backend,
    connected,
    outgoing,
    passes,
    settle,
    soon,
    take,
    until,
    with_query,
    working,
)
from tests.rabbitmq_natives.stage import Place
from tests.servers.rabbitmq import ADVANCED, RabbitServer

pytestmark = pytest.mark.needs("rabbitmq")

GUIDE = (Path(__file__).parents[2] / "docs/guides/rabbitmq.md").read_text()


# -- the URL ----------------------------------------------------------------------------------------------------------


def test_what_a_url_leaves_out_is_as_the_guide_says():
    plain, secure = parse("amqp://rabbit"), parse("amqps://a:5000,b")
    assert [str(one) for one in (*plain.servers, *secure.servers)] == ["rabbit:5672", "a:5000", "b:5671"]
    assert (plain.username, plain.password, plain.vhost, plain.prefix) == ("guest", "guest", "/", "carteiro")
    assert (plain.heartbeat, plain.timeout, plain.connect_timeout) == (30, 30, 5)
    assert [parse(url).vhost for url in ("amqp://rabbit/", "amqp://rabbit/shop", "amqp://rabbit/%2Fshop")] == [
        "/",
        "shop",
        "/shop",
    ]


# -- names ------------------------------------------------------------------------------------------------------------


async def test_two_prefixes_on_one_server_do_not_mix(rabbitmq_url: str):
    async with connected(rabbitmq_url, ORDERS) as one, connected(f"{rabbitmq_url}-b", ORDERS) as other:
        await passes(one, b"one")
        await passes(other, b"other")
        await other.declare([Subscription("news", "shop")])
        assert [group.topic for group in await one.groups()] == ["orders"]


async def test_every_queue_and_exchange_is_called_as_the_guide_says(rabbitmq_server: RabbitServer, rabbitmq_url: str):
    prefix = parse(rabbitmq_url).prefix
    await _use_everything(rabbitmq_url)
    levels = [f"carteiro.delay.{level:02}" for level in range(30)]
    queues = await _names(rabbitmq_server, "rabbit_amqqueue:list()", "amqqueue:get_name(X)")
    mine = {name.removeprefix(f"{prefix}.") for name in queues if name.startswith(f"{prefix}.")}
    assert mine == {"orders@shop", "logs.#@shop", "news@audit", "greet@shop", "groups", "dlq_orders"}
    assert {name for name in queues if name.startswith("carteiro.")} - {"carteiro.groups"} == {
        *levels,
        "carteiro.unrouted",
    }
    exchanges = await _names(rabbitmq_server, 'rabbit_exchange:list(<<"/">>)', "element(2, X)")
    assert {name for name in exchanges if name.startswith(prefix)} == {prefix, f"{prefix}.private"}
    assert {name for name in exchanges if name.startswith("carteiro.")} - {"carteiro.private"} == {
        *levels,
        "carteiro.delay.gate",
        "carteiro.delay.end",
        "carteiro.unrouted",
    }


async def test_what_is_due_for_a_group_that_was_removed_is_in_the_queue_for_that(vhost: str, rabbitmq_url: str):
    async with connected(_in(vhost, rabbitmq_url), ORDERS) as broker:
        await broker.publish([outgoing(b"late", delay=0.2)])
        await broker.remove_group(ORDERS.topic, ORDERS.group)

        async def is_there() -> bool:
            channel = await (await broker._server.link()).channel()
            content = await channel.call(methods.get("carteiro.unrouted"))
            await channel.close()
            return content is not None and content[5] == b"late"

        await until(is_there)


async def test_the_setting_for_what_falls_due_while_a_server_starts_is_taken_as_it_is_written(
    each_rabbitmq_server: RabbitServer,
):
    assert f"```erlang\n{ADVANCED}\n```" in GUIDE  # the servers of these tests have it too
    asking = "application:get_env(rabbit, dead_letter_worker_publisher_confirm_timeout)"
    assert await asyncio.to_thread(each_rabbitmq_server.evaluate, asking) == "{ok, 5000}"


# -- the wire ---------------------------------------------------------------------------------------------------------


async def test_a_plain_client_publishes_to_a_topic_and_reads_what_is_published_there(rabbitmq_url: str):
    place = Place(rabbitmq_url)
    handled, app = asyncio.Queue[Message](), Carteiro("shop", rabbitmq_url)

    @app.subscriber("orders")
    async def handle(order: dict[str, int], message: Message) -> None:
        handled.put_nowait(message)

    async with working(app):
        place.publish("orders", b'{"id": 1}', exchange=place.prefix, headers={"tries": 3})
        bare = await soon(handled.get())
        place.client.queue_bind(queue := place.queue("copies"), place.prefix, "orders")
        id = await app.publish("orders", {"id": 2}, key="2", type="order", headers={"x-tenant": "br"})
        await soon(handled.get())
    assert (bare.topic, bare.headers, bare.attempt) == ("orders", {"tries": "3"}, 1)
    got = place.get(queue)
    place.close()
    assert got is not None
    properties, headers = got.properties, dict(got.properties.headers or {})
    assert (got.body, got.routing_key, properties.message_id, properties.type) == (b'{"id":2}', "orders", id, "order")
    assert (properties.correlation_id, properties.delivery_mode) == (id, 2)
    assert headers.pop("carteiro-published") == properties.timestamp  # pika drops a double's fraction
    assert {name: headers[name] for name in headers.keys() - {"x-delivery-count"}} == {
        "carteiro-key": "2",
        "x-tenant": "br",
    }


# -- permissions ------------------------------------------------------------------------------------------------------


def _rule() -> dict[str, list[str]]:
    """The alternatives of each pattern that the guide gives."""
    written = re.search(r"set_permissions .*?shop((?:\s+\\?\s*'[^']*'){3})", GUIDE, re.DOTALL)
    assert written is not None
    patterns = re.findall(r"'\^\((.*?)\)\$'", written[1])
    return {
        right: re.findall(r"(?:[^|(]|\([^)]*\))+", pattern)
        for right, pattern in zip(("configure", "write", "read"), patterns, strict=True)
    }


RULE = _rule()


async def _user(server: RabbitServer, vhost: str, prefix: str, rule: dict[str, list[str]]) -> str:
    """The URL of a user who may do what the rule says, with this prefix for the guide's."""
    name = f"user-{uuid.uuid4().hex[:8]}"
    rights = [f"^({'|'.join(one)})$".replace("shop", prefix, 1) for one in rule.values()]
    binaries = [_binary(text) for text in (name, vhost, *rights)]
    await asyncio.to_thread(server.add_user, name, "secret", vhost=vhost)
    allow = f'ok = rabbit_auth_backend_internal:set_permissions({", ".join(binaries)}, <<"tests">>)'
    await asyncio.to_thread(server.evaluate, allow)
    return with_query(server.url_with(vhost=vhost, user=name, password="secret"), prefix=prefix)


async def test_the_permissions_of_the_guide_are_enough(rabbitmq_server: RabbitServer, vhost: str):
    url = await _user(rabbitmq_server, vhost, "shop", RULE)
    await _use_everything(url)
    assert {check.status for check in await soon(backend(url).doctor())} <= {"ok", "warning"}


@pytest.mark.parametrize(
    ("right", "needed"), [(right, one) for right, alternatives in RULE.items() for one in alternatives]
)
async def test_what_is_left_out_of_the_permissions_is_named_by_the_error(
    rabbitmq_server: RabbitServer, right: str, needed: str
):
    rule = {name: [one for one in all_ if (name, one) != (right, needed)] for name, all_ in RULE.items()}
    prefix = f"test-{uuid.uuid4().hex[:8]}"
    broker = backend(await _user(rabbitmq_server, "/", prefix, rule)).broker
    lacking = needed.replace("shop(\\..*)?", prefix).removesuffix("\\..*").replace("\\", "")
    try:
        with pytest.raises(BrokerError, match=rf"does not permit that to this user: .*{lacking}"):
            await _connect_and_pass(broker)
    finally:
        await soon(broker.close())


async def _connect_and_pass(broker: RabbitBroker) -> None:
    await soon(broker.connect())
    await soon(broker.declare([ORDERS]))
    await passes(broker)


async def test_a_queue_of_others_needs_no_right_to_configure(rabbitmq_server: RabbitServer, vhost: str):
    async with connected(rabbitmq_server.url_with(vhost=vhost)) as owner:
        await owner._server.run([methods.queue_declare("legacy")])
    rule = {**RULE, **{right: [*RULE[right], "legacy"] for right in ("write", "read")}}
    handled, app = Handled(), Carteiro("shop", await _user(rabbitmq_server, vhost, "shop", rule))
    queue = RabbitQueue("legacy", declare=False)
    app.subscriber(queue)(_noting(handled))
    async with working(app):
        await app.publish(queue, 1)
        await handled.all_of([1])


# -- connections and leases -------------------------------------------------------------------------------------------


async def test_a_worker_with_200_subscriptions_has_two_connections_and_a_publisher_one(
    rabbitmq_server: RabbitServer, vhost: str, rabbitmq_url: str
):
    url = _in(vhost, rabbitmq_url)
    handled, app = Handled(), Carteiro("shop", url)
    for number in range(200):
        app.subscriber(f"topic.{number}")(_noting(handled))
    in_it = f"rabbit_networking:connection_info(C, [vhost]) =:= [{{vhost, {_binary(vhost)}}}]"
    async with working(app), Carteiro("desk", url) as publisher:
        await publisher.publish("topic.199", 1)
        await handled.all_of([1])
        count = f"length([C || C <- rabbit_networking:local_connections(), {in_it}])"
        assert await asyncio.to_thread(rabbitmq_server.evaluate, count) == "3"


async def test_what_a_lost_connection_held_comes_again_before_its_lease_ends(rabbitmq_url: str):
    slow = Subscription("orders", "shop", lease=3600)
    async with connected(rabbitmq_url, slow) as broker, connected(rabbitmq_url, slow) as other:
        dying = broker.consume([slow])
        await broker.publish([outgoing(b"held")])
        await take(dying, subscription=slow)
        assert dying._link is not None
        dying._link.abort("the process was killed")
        heir = other.consume([slow])
        (again,) = await take(heir, subscription=slow)
        assert again.message.attempt == 2
        assert await settle(heir, [again]) == []


# -- limits -----------------------------------------------------------------------------------------------------------


async def test_a_message_that_the_server_does_not_take_is_refused_and_its_neighbours_are_not(
    rabbitmq_server: RabbitServer, rabbitmq_url: str
):
    others = await _connections(rabbitmq_server)
    handled = Handled()
    app = Carteiro("shop", rabbitmq_url)
    app.subscriber("orders")(_noting(handled))
    async with working(app):
        too_much, one = await asyncio.gather(
            app.publish("orders", 0, headers={"notes": "x" * 140_000}), app.publish("orders", 1), return_exceptions=True
        )
        assert isinstance(too_much, BrokerError)
        assert "frame_too_large" in str(too_much)
        assert isinstance(one, str)
        await handled.all_of([1])
    await until(lambda: _nobody_else_is_connected(rabbitmq_server, others))


async def test_a_topic_too_long_for_a_delay_is_refused_with_the_bytes_that_there_are(rabbitmq_url: str):
    prefix = parse(rabbitmq_url).prefix
    room = 194 - len(prefix)
    async with connected(rabbitmq_url) as broker:
        await broker.publish([outgoing(b"", "x" * room, delay=1)])
        with pytest.raises(UnsupportedFeature, match="195 bytes are left"):
            await broker.publish([outgoing(b"", "x" * (room + 1), delay=1)])
        long = Subscription("y" * 200, "shop")
        await broker.declare([long])
        await passes(broker, subscription=long)


# -- what they share --------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def vhost(rabbitmq_server: RabbitServer) -> AsyncIterator[str]:
    name = f"guide-{uuid.uuid4().hex[:8]}"
    await asyncio.to_thread(rabbitmq_server.add_vhost, name)
    yield name
    await asyncio.to_thread(rabbitmq_server.evaluate, f'ok = rabbit_vhost:delete({_binary(name)}, <<"tests">>)')


def _in(vhost: str, url: str) -> str:
    return url.replace("/%2F", f"/{vhost}")


def _binary(text: str) -> str:
    """As Erlang writes it."""
    return f"<<{','.join(map(str, text.encode()))}>>"


async def _connections(server: RabbitServer) -> set[str]:
    return set(re.findall(r"<.*?>", await asyncio.to_thread(server.evaluate, "rabbit_networking:local_connections()")))


async def _nobody_else_is_connected(server: RabbitServer, others: set[str]) -> bool:
    return await _connections(server) <= others


def _noting(handled: Handled) -> Callable[[int], Awaitable[None]]:
    async def handle(number: int) -> None:
        handled.note(number)

    return handle


async def _names(server: RabbitServer, list_: str, name: str) -> set[str]:
    """Of queues or exchanges in the virtual host `/`."""
    in_it = f'element(2, {name}) =:= <<"/">>'
    lines = f"[binary_to_list(element(4, {name})) || X <- {list_}, {in_it}]"
    return set(re.findall(r'"([^"]*)"', await asyncio.to_thread(server.evaluate, lines)))


async def _use_everything(url: str) -> None:
    """Of what takes a right or a name of its own: each way in which messages travel and end, and what operators do."""
    handled, app = Handled(), Carteiro("shop", url, retry=Retry(attempts=2, backoff=constant(0.1)))

    @app.subscriber("orders")
    async def handle(number: int, message: Message) -> None:
        if number == 13 and message.attempt == 1:
            raise ValueError("again")
        if number == 13:
            raise Reject("unlucky")
        handled.note(number)

    app.subscriber("logs.#")(_noting(handled))
    app.subscriber("news", group="audit")(_noting(handled))
    app.subscriber("news", group=None)(_noting(handled))

    @app.subscriber("greet")
    async def greet(name: str) -> str:
        return f"hello, {name}"

    async with working(app):
        await app.publish("orders", 1)
        await app.publish("orders", 2, delay=0.1)
        await app.publish("logs.error", 3)
        await app.publish("news", 4)
        assert await soon(app.request("greet", "Ana")) == "hello, Ana"
        await handled.all_of([1, 2, 3, 4, 4])
        await app.publish("orders", 13)
        broker = app.connection.broker
        assert isinstance(broker, RabbitBroker)
        await until(lambda: _has_died(broker))
        assert await broker.replay("dlq_orders") == 1
        await until(lambda: _has_died(broker))
        assert await broker.purge_dead("dlq_orders") == 1
        assert await broker.purge("news", "audit") == 0
        await broker.declare([Subscription("news", "gone")])
        await broker.remove_group("news", "gone")


async def _has_died(broker: RabbitBroker) -> bool:
    return any(group.dead for group in await broker.groups())
