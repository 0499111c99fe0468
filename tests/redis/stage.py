"""What these tests hold in hand: brokers, apps that work, a link that counts, and waits that end."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

from carteiro import BrokerUnavailable, Carteiro, Message
from carteiro.backends.redis import RedisBackend, RedisBroker
from carteiro.message import NO_HEADERS, Action, Delivery, Failure, Outcome, Outgoing, Subscription, new_id
from carteiro.ports.broker import Consumer
from carteiro.ports.clock import SYSTEM_CLOCK, Clock
from carteiro.ports.registry import open_backend

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds after which what a test waits for is taken not to come."""

ORDERS = Subscription("orders", "shop", lease=60.0)


async def soon(awaitable: Awaitable[T]) -> T:
    """Await what must come."""
    async with asyncio.timeout(PATIENCE):
        return await awaitable


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    """Return when `condition` holds on the server: for what nobody announces."""
    async with asyncio.timeout(PATIENCE):
        while not await condition():  # noqa: ASYNC110 (the event is in another process)
            await asyncio.sleep(0.01)


# -- brokers --------------------------------------------------------------------------------------------------------


def backend(url: str, clock: Clock = SYSTEM_CLOCK) -> RedisBackend:
    opened = open_backend(url, clock=clock)
    assert isinstance(opened, RedisBackend)
    return opened


@contextlib.asynccontextmanager
async def connected(url: str, *subscriptions: Subscription, clock: Clock = SYSTEM_CLOCK) -> AsyncIterator[RedisBroker]:
    """A broker, with these declared."""
    broker = backend(url, clock).broker
    await soon(broker.connect())
    try:
        await broker.declare(subscriptions)
        yield broker
    finally:
        await soon(broker.close())


def outgoing(body: bytes = b"", topic: str = ORDERS.topic, **options: Any) -> Outgoing:
    id = options.pop("id", None) or new_id()
    key, headers = options.pop("key", None), options.pop("headers", NO_HEADERS)
    return Outgoing(id, topic, body, key, headers, id, **options)


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Call until the broker is there."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await call()
            except BrokerUnavailable:
                await asyncio.sleep(0.02)


async def take(consumer: Consumer, count: int = 1, subscription: Subscription = ORDERS) -> list[Delivery]:
    """Claim so many, over connections that break meanwhile too."""
    taken: list[Delivery] = []
    while len(taken) < count:
        room = {subscription: count - len(taken)}
        taken += await patiently(lambda room=room: consumer.fetch(room))  # type: ignore[misc]
    return taken


async def settle(
    consumer: Consumer, deliveries: Sequence[Delivery], action: Action = Action.ACK, **options: Any
) -> Sequence[Delivery]:
    """End them all in one call. What is no ack has a failure."""
    outcomes = [Outcome(one, action, failure=_failure(one, action), **options) for one in deliveries]
    return await soon(consumer.settle(outcomes))


def _failure(delivery: Delivery, action: Action) -> Failure | None:
    if action not in (Action.RETRY, Action.DEAD):
        return None
    return Failure(delivery.message.attempt, delivery.message.published, "it failed")


async def passes(broker: RedisBroker, body: bytes = b"hello") -> None:
    """Publish, claim and ack one message of ORDERS."""
    consumer = broker.consume([ORDERS])
    await patiently(lambda: broker.publish([outgoing(body)]))
    taken = await take(consumer)
    assert [one.message.body for one in taken] == [body]
    assert await settle(consumer, taken) == []
    await consumer.close()


# -- apps -----------------------------------------------------------------------------------------------------------


class Handled:
    """Counts what an app's handlers have handled, by body."""

    def __init__(self) -> None:
        self.counts: Counter[Any] = Counter()
        self._more = asyncio.Event()

    def note(self, body: Any) -> None:
        self.counts[body] += 1
        self._more.set()

    async def all_of(self, bodies: Sequence[Any]) -> None:
        """Return when each of them was handled at least once."""
        async with asyncio.timeout(PATIENCE):
            while not self.counts.keys() >= set(bodies):
                self._more.clear()
                await self._more.wait()


def shop(url: str, handled: Handled, **options: Any) -> Carteiro:
    """An app that handles `orders`."""
    app = Carteiro("shop", url, **options)

    @app.subscriber("orders")
    async def handle(number: int, message: Message) -> None:
        handled.note(number)

    return app


@contextlib.asynccontextmanager
async def working(app: Carteiro) -> AsyncIterator[asyncio.Task[None]]:
    """Its worker, from being ready until it has stopped in good order."""
    running = asyncio.create_task(app.run())
    ready = asyncio.create_task(app.ready())
    await soon(asyncio.wait((running, ready), return_when=asyncio.FIRST_COMPLETED))
    if running.done():
        ready.cancel()
        await running
    try:
        yield running
    finally:
        app.stop()
        await soon(running)
