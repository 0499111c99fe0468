"""What someone deletes behind carteiro's back is made again, as the log says, and what is confirmed after is there."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Sequence
from functools import partial

import pytest

from carteiro import BrokerError, BrokerUnavailable, Carteiro
from carteiro.backends.rabbitmq import RabbitBroker
from carteiro.message import Action, Delivery, Subscription
from carteiro.ports.broker import Consumer
from tests.rabbitmq.stage import (
    ORDERS,
    Handled,
    Operator,
    Told,
    connected,
    outgoing,
    passes,
    patiently,
    settle,
    shop,
    soon,
    take,
    until,
    working,
)
from tests.servers.rabbitmq import RabbitServer

pytestmark = pytest.mark.needs("rabbitmq")


@contextlib.asynccontextmanager
async def own_vhost(server: RabbitServer) -> AsyncIterator[str]:
    """For tests that delete what all who use a virtual host share."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    await asyncio.to_thread(server.add_vhost, name)
    yield name
    with contextlib.suppress(RuntimeError):
        await asyncio.to_thread(_delete_vhost, server, name)


def _delete_vhost(server: RabbitServer, name: str) -> None:
    server.evaluate(f'ok = rabbit_vhost:delete(<<"{name}">>, <<"tests">>)')


# -- the queue --------------------------------------------------------------------------------------------------------


async def test_a_queue_that_is_deleted_under_its_consumers_is_made_again_and_they_come_back(
    each_rabbitmq_server: RabbitServer, each_rabbitmq_url: str, caplog: pytest.LogCaptureFixture
):
    told = Told(caplog)
    handled = Handled()
    app = shop(each_rabbitmq_url, handled)
    async with working(app):
        operator = Operator(each_rabbitmq_server, app.connection.broker)  # type: ignore[arg-type]
        for number in range(3):
            await app.publish("orders", number)
            await handled.all_of([number])
            await operator.delete_queue(operator.queue())
            await _until_routed(app, -number - 1)
        await handled.all_of([-1, -2, -3])
    assert "the queue of orders [shop] was deleted" in await told.of("it is made again")


async def _until_routed(app: Carteiro, number: int) -> None:
    from carteiro import Unroutable

    while True:
        with contextlib.suppress(Unroutable):
            await app.publish("orders", number, mandatory=True)
            return


async def test_what_was_claimed_of_a_queue_that_was_deleted_cannot_be_settled(
    rabbitmq_server: RabbitServer, rabbitmq_url: str
):
    async with connected(rabbitmq_url, ORDERS) as broker:
        operator = Operator(rabbitmq_server, broker)
        consumer = broker.consume([ORDERS])
        await broker.publish([outgoing(b"gone")])
        held = await take(consumer)
        idle = asyncio.ensure_future(consumer.fetch({ORDERS: 1}))
        await operator.delete_queue(operator.queue())
        await _until_there(broker)
        await until(lambda: _are_lost(consumer, held))
        lost = await settle(consumer, held, Action.ACK, emits=[outgoing(topic="other")])
        assert lost == held
        await broker.publish([outgoing(b"new")])
        new = list(await soon(idle))
        while new[-1].message.body != b"new":
            new += await take(consumer)
        assert {one.message.attempt for one in new} == {1}
        await settle(consumer, new)


async def _are_lost(consumer: Consumer, held: Sequence[Delivery]) -> bool:
    """Whether it was told of it: that comes on another connection than who publishes has."""
    return await consumer.renew(held) == held


async def _until_there(broker: RabbitBroker) -> None:
    async with asyncio.timeout(20):
        while await broker.publish([outgoing(b"is it there?")]):  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.01)


async def test_a_removed_group_is_not_made_again_by_who_only_meets_its_lack(rabbitmq_url: str):
    async with connected(rabbitmq_url, ORDERS) as broker, connected(rabbitmq_url) as other:
        consumer = broker.consume([ORDERS])
        await other.remove_group(ORDERS.topic, ORDERS.group)
        with pytest.raises(BrokerError, match="is not declared, or was removed: declare it"):
            await soon(consumer.fetch({ORDERS: 1}))
        assert await broker.groups() == []


# -- exchanges --------------------------------------------------------------------------------------------------------


async def test_an_exchange_that_is_deleted_is_made_again_with_its_bindings_by_who_publishes(
    rabbitmq_server: RabbitServer, rabbitmq_url: str
):
    handled = Handled()
    app = shop(rabbitmq_url, handled)
    async with working(app):
        operator = Operator(rabbitmq_server, app.connection.broker)  # type: ignore[arg-type]
        for round in range(3):
            numbers = range(100 * round, 100 * round + 100)
            publishing = asyncio.gather(*(app.publish("orders", number) for number in numbers))
            await operator.delete_exchange(operator.names.exchange("orders"))
            await soon(publishing)
        await app.publish("orders", -1, mandatory=True)
        await handled.all_of([-1])
        # What was published between the exchange's loss and its return was not confirmed: so it came again.
        await handled.all_of(range(300))


async def test_who_only_publishes_makes_the_bindings_of_all_groups_again(
    rabbitmq_server: RabbitServer, rabbitmq_url: str
):
    audit, all_orders = Subscription("orders", "audit", lease=60.0), Subscription("#", "all", lease=60.0)
    async with connected(rabbitmq_url, ORDERS, audit, all_orders) as broker, connected(rabbitmq_url) as publisher:
        operator = Operator(rabbitmq_server, publisher)
        await operator.delete_exchange(operator.names.exchange("orders"))
        assert await patiently(lambda: publisher.publish([outgoing(b"1")])) == []
        await operator.unbind(operator.queue(), operator.names.exchange("orders"), "orders")
        await operator.unbind(operator.queue(audit), operator.names.exchange("orders"), "orders")
        await operator.unbind(operator.queue(all_orders), operator.names.exchange("orders"), "#")
        messages = [outgoing(b"2"), outgoing(b"nobody", "$nobodys"), outgoing(b"3")]
        assert await publisher.publish(messages) == [messages[1]]
        for one in (ORDERS, audit, all_orders):
            taken = await take(broker.consume([one]), 3, one)
            assert [delivery.message.body for delivery in taken] == [b"1", b"2", b"3"], one


async def test_a_group_that_was_removed_is_not_made_again_by_who_finds_its_messages_astray(rabbitmq_url: str):
    async with connected(rabbitmq_url, ORDERS) as broker, connected(rabbitmq_url) as other:
        await other.remove_group(ORDERS.topic, ORDERS.group)
        message = outgoing()
        assert await broker.publish([message]) == [message]
        assert await broker.groups() == []


# -- dead letters -----------------------------------------------------------------------------------------------------


async def test_a_dead_letter_queue_that_is_deleted_is_made_again_and_keeps_what_dies_after(
    rabbitmq_server: RabbitServer, rabbitmq_url: str
):
    async with connected(rabbitmq_url, ORDERS) as broker:
        operator = Operator(rabbitmq_server, broker)
        consumer = broker.consume([ORDERS])
        for round in range(3):
            await broker.publish([outgoing(b"%d" % number) for number in range(5)])
            taken = await take(consumer, 5)
            await patiently(lambda taken=taken: settle(consumer, taken, Action.DEAD))  # type: ignore[misc]
            assert len(await broker.dead_letters("dlq_orders")) == 5, round
            await operator.delete_queue(operator.names.letters("dlq_orders"))
        assert await broker.dead_letters("dlq_orders") == []
        assert await broker.purge_dead("dlq_orders") == 0


# -- delays -----------------------------------------------------------------------------------------------------------


async def test_delay_levels_that_are_deleted_are_made_again_by_who_needs_them(rabbitmq_server: RabbitServer):
    async with own_vhost(rabbitmq_server) as vhost:
        url = rabbitmq_server.url_with(vhost=vhost)
        async with connected(url, ORDERS) as broker:
            operator = Operator(rabbitmq_server, broker, vhost)
            consumer = broker.consume([ORDERS])
            for attempt, lost in enumerate([["exchange"], ["queue"], ["exchange", "queue"]], 1):
                await patiently(lambda: broker.publish([outgoing(b"delayed", delay=0.3)]))
                (delayed,) = await take(consumer)
                for level in ("carteiro.delay.00", "carteiro.delay.01"):
                    await (operator.delete_exchange(level) if "exchange" in lost else asyncio.sleep(0))
                    await (operator.delete_queue(level) if "queue" in lost else asyncio.sleep(0))

                retry = partial(settle, consumer, [delayed], Action.RETRY, delay=0.1)
                await patiently(retry)
                (again,) = await take(consumer)
                assert (again.message.id, again.message.attempt) == (delayed.message.id, 2), (
                    f"without {lost}: {attempt}"
                )
                await settle(consumer, [again])


# -- the list of groups -----------------------------------------------------------------------------------------------


async def test_a_list_of_groups_that_is_deleted_is_made_again_by_who_needs_it(
    rabbitmq_server: RabbitServer, rabbitmq_url: str
):
    async with connected(rabbitmq_url, ORDERS) as broker, connected(rabbitmq_url) as other:
        operator = Operator(rabbitmq_server, broker)
        consumer = broker.consume([ORDERS])
        await broker.publish([outgoing(b"doomed")])
        taken = await take(consumer)
        await operator.delete_queue(operator.names.register)
        await patiently(lambda: settle(consumer, taken, Action.DEAD))
        assert [(one.topic, one.group) for one in await other.groups()] == [("orders", "shop")]
        assert len(await other.dead_letters()) == 1


@pytest.mark.parametrize("step", ["_put", "add"])
async def test_a_list_of_groups_whose_making_broke_off_is_made_whole_by_the_next_try(
    rabbitmq_server: RabbitServer, rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch, step: str
):
    async with connected(rabbitmq_url, ORDERS) as broker:
        server, operator = broker._server, Operator(rabbitmq_server, broker)
        for queue in (operator.names.register, operator.queue()):
            await operator.delete_queue(queue)
        with monkeypatch.context() as broken:
            broken.setattr(server.register, step, _breaks_off)
            with pytest.raises(BrokerUnavailable):
                await soon(server.restore())
        await soon(server.restore())
        assert [(one.topic, one.group) for one in await broker.groups()] == [("orders", "shop")]
        await passes(broker)


async def _breaks_off(*_: object) -> None:
    raise BrokerUnavailable("the connection is lost")


# -- all of it --------------------------------------------------------------------------------------------------------


async def test_a_virtual_host_that_is_deleted_and_made_again_has_its_groups_again_by_itself(
    rabbitmq_server: RabbitServer,
):
    handled = Handled()
    async with own_vhost(rabbitmq_server) as vhost:
        app = shop(rabbitmq_server.url_with(vhost=vhost), handled, breaker=None)
        async with working(app):
            await app.publish("orders", 1)
            await handled.all_of([1])
            await asyncio.to_thread(_delete_vhost, rabbitmq_server, vhost)
            with pytest.raises(BrokerError, match=f"does not let this user into this virtual host.*{vhost}"):  # noqa: PT012
                async with asyncio.timeout(20):
                    while True:
                        with contextlib.suppress(BrokerUnavailable):
                            await app.connection.broker.publish([outgoing(b"2")])
            await asyncio.to_thread(rabbitmq_server.add_vhost, vhost)
            await soon(_until_taken(app, 3))
            await handled.all_of([3])


async def _until_taken(app: Carteiro, number: int) -> None:
    while True:
        with contextlib.suppress(BrokerError):
            await app.publish("orders", number, mandatory=True)
            return
        await asyncio.sleep(0.05)
