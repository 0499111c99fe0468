"""What a subscription is on the server: a queue, and what brings messages into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from carteiro.backends.rabbitmq import delays, methods
from carteiro.backends.rabbitmq.names import Names
from carteiro.backends.rabbitmq.natives import RabbitExchange, RabbitQueue
from carteiro.message import Subscription

_NEVER: Final = 10**9
"""Deliveries, after which RabbitMQ 4 would drop a message (its own limit is 20), and seconds that a handler may take,
in milliseconds below. -1 is what 4 documents for no limit; 3.10 takes that for none at all and drops the second."""
_NO_MORE: Final[Mapping[str, Any]] = {}
_EPHEMERAL_EXPIRES: Final = 300
"""Seconds without its process after which the queue of a broadcast goes."""


def quorum_arguments() -> dict[str, Any]:
    return {"x-queue-type": "quorum", "x-delivery-limit": _NEVER, "x-consumer-timeout": _NEVER * 1000}


def common(names: Names) -> Iterator[bytes]:
    """What all publishers and subscriptions of one prefix share."""
    for exchange in names.exchanges():
        yield methods.exchange_declare(exchange, "topic")
    yield from delays.declarations()


def queue(names: Names, subscription: Subscription) -> Iterator[bytes]:
    """Its queue and what fills it. A broadcast's is in memory only: it goes with its process."""
    name, source = names.queue(subscription), subscription.source
    if isinstance(source, RabbitQueue) and not source.is_stream:
        yield from native(source)
        return
    yield _own_queue(name, subscription)
    if isinstance(source, RabbitExchange):
        yield from _exchange(source)
        yield methods.queue_bind(name, source.name, source.routing_key or "")
    elif isinstance(source, RabbitQueue):
        yield from native(source)
        yield _own_queue(names.position(subscription), subscription, {"x-single-active-consumer": True})
    else:
        yield methods.queue_bind(name, names.exchange(subscription.topic), subscription.topic)
        if delays.fits(names.delayed(subscription.topic)):
            yield delays.binding(name, names.delayed(subscription.topic))
    yield delays.binding(name, delays.address_of_queue(name))


def _own_queue(name: str, subscription: Subscription, more: Mapping[str, Any] = _NO_MORE) -> bytes:
    if subscription.ephemeral:
        expires: dict[str, Any] = {"x-queue-type": "classic", "x-expires": _EPHEMERAL_EXPIRES * 1000}
        return methods.queue_declare(name, durable=False, arguments={**expires, **more})
    return methods.queue_declare(name, arguments={**quorum_arguments(), **more})


def native(object: RabbitQueue | RabbitExchange, *, delays_lead_there: bool = True) -> Iterator[bytes]:
    """It, and what leads to it: exactly as its user says, so that other clients can say the same."""
    if isinstance(object, RabbitExchange):
        yield from _exchange(object)
        return
    yield methods.queue_declare(
        object.name,
        passive=not object.declare,
        durable=object.durable,
        exclusive=object.exclusive,
        auto_delete=object.auto_delete,
        arguments=object.queue_arguments(),
    )
    for binding in object.bindings:
        yield from _exchange(binding.exchange)
        yield methods.queue_bind(object.name, binding.exchange.name, binding.routing_key, binding.arguments)
    if delays_lead_there and delays.fits(delays.address_of_queue(object.name)):
        yield delays.binding(object.name, delays.address_of_queue(object.name))


def _exchange(exchange: RabbitExchange) -> Iterator[bytes]:
    yield methods.exchange_declare(
        exchange.name,
        exchange.type,
        passive=not exchange.declare,
        durable=exchange.durable,
        auto_delete=exchange.auto_delete,
        internal=exchange.internal,
        arguments=exchange.arguments,
    )
    for binding in exchange.bindings:
        yield from _exchange(binding.exchange)
        yield methods.exchange_bind(exchange.name, binding.exchange.name, binding.routing_key, binding.arguments)


def letters(name: str) -> bytes:
    """The queue of dead letters."""
    return methods.queue_declare(name, arguments=quorum_arguments())
