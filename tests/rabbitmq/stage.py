"""What these tests hold in hand: brokers on RabbitMQ, apps that work, and an operator's hand on the server.

What is no system's own comes from the stage of the tests on Redis.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

import pytest

from carteiro import Message
from carteiro.backends.rabbitmq import RabbitBackend, RabbitBroker
from carteiro.message import Delivery, Subscription
from carteiro.ports.clock import SYSTEM_CLOCK, Clock
from carteiro.ports.registry import open_backend
from tests.redis.stage import (
    ORDERS,
    PATIENCE,
    Handled,
    outgoing,
    patiently,
    settle,
    shop,
    soon,
    take,
    until,
    working,
)
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import with_query

__all__ = [
    "ORDERS",
    "PATIENCE",
    "Handled",
    "Operator",
    "Told",
    "backend",
    "connected",
    "outgoing",
    "passes",
    "patiently",
    "settle",
    "shop",
    "soon",
    "take",
    "take_one_by_one",
    "until",
    "with_query",
    "working",
]


def backend(url: str, clock: Clock = SYSTEM_CLOCK) -> RabbitBackend:
    opened = open_backend(url, clock=clock)
    assert isinstance(opened, RabbitBackend)
    return opened


@contextlib.asynccontextmanager
async def connected(url: str, *subscriptions: Subscription, clock: Clock = SYSTEM_CLOCK) -> AsyncIterator[RabbitBroker]:
    """A broker, with these declared."""
    broker = backend(url, clock).broker
    await soon(broker.connect())
    try:
        await soon(broker.declare(subscriptions))
        yield broker
    finally:
        await soon(broker.close())


async def passes(broker: RabbitBroker, body: bytes = b"hello", subscription: Subscription = ORDERS) -> None:
    """Publish, claim and ack one message."""
    consumer = broker.consume([subscription])
    await patiently(lambda: broker.publish([outgoing(body, subscription.topic)]))
    taken = await take(consumer, subscription=subscription)
    assert [one.message.body for one in taken] == [body]
    assert await settle(consumer, taken) == []
    await consumer.close()


async def take_one_by_one(broker: RabbitBroker, count: int, subscription: Subscription = ORDERS) -> list[Message]:
    """So many messages, each claimed and acked before the next is asked for."""
    consumer = broker.consume([subscription])
    messages: list[Message] = []
    for _ in range(count):
        taken: list[Delivery] = await take(consumer, subscription=subscription)
        assert await settle(consumer, taken) == []
        messages += [delivery.message for delivery in taken]
    await consumer.close()
    return messages


class Operator:
    """What is done to a server behind everyone's back, under one prefix and in one virtual host."""

    def __init__(self, server: RabbitServer, broker: RabbitBroker, vhost: str = "/") -> None:
        self.names = broker._server.names
        self._server = server
        self._vhost = vhost

    def queue(self, subscription: Subscription = ORDERS) -> str:
        return self.names.queue(subscription)

    async def delete_queue(self, name: str) -> None:
        deleting = "fun(Q) -> rabbit_amqqueue:delete(Q, false, false, <<116>>) end"
        await self._evaluate(f"{{ok, _}} = rabbit_amqqueue:with({self._resource('queue', name)}, {deleting})")

    async def delete_exchange(self, name: str) -> None:
        """If it is there."""
        await self._evaluate(f"rabbit_exchange:delete({self._resource('exchange', name)}, false, <<116>>)")

    async def unbind(self, queue: str, exchange: str, key: str) -> None:
        source, to = self._resource("exchange", exchange), self._resource("queue", queue)
        binding = f"{{binding, {source}, {_binary(key)}, {to}, []}}"
        await self._evaluate(f"ok = rabbit_binding:remove({binding}, <<116>>)")

    async def messages(self, name: str) -> int:
        """How many a quorum queue holds, claimed ones included."""
        return (await asyncio.to_thread(self._server.messages, self._vhost))[name]

    async def connections(self) -> int:
        """How many clients the server has."""
        return int(await self._evaluate("length(rabbit_networking:local_connections())"))

    async def _evaluate(self, expression: str) -> str:
        return await asyncio.to_thread(self._server.evaluate, expression)

    def _resource(self, kind: str, name: str) -> str:
        return f"rabbit_misc:r({_binary(self._vhost)}, {kind}, {_binary(name)})"


class Told:
    """What carteiro logs from now on."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        caplog.set_level(logging.INFO, "carteiro")

    def lines(self, holds: str = "") -> list[str]:
        return [record.getMessage() for record in self._caplog.records if holds in record.getMessage()]

    async def of(self, words: str) -> str:
        """Return the first line with these words, when it has come."""
        await until(self._has(words))
        return self.lines(words)[0]

    def _has(self, words: str) -> Callable[[], asyncio.Future[bool]]:
        async def has() -> bool:
            return bool(self.lines(words))

        return lambda: asyncio.ensure_future(has())


def _binary(text: str) -> str:
    """As Erlang writes it."""
    return f"<<{','.join(map(str, text.encode()))}>>"
