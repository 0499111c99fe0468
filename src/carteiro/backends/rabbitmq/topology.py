"""What a subscription is on the server: a queue, and what brings messages into it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from carteiro.backends.rabbitmq import delays, methods
from carteiro.backends.rabbitmq.names import Names
from carteiro.message import Subscription

_NEVER: Final = 10**9
"""Deliveries, after which RabbitMQ 4 would drop a message (its own limit is 20), and seconds that a handler may take,
in milliseconds below. -1 is what 4 documents for no limit; 3.10 takes that for none at all and drops the second."""
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
    """Its queue and its bindings. A broadcast's is in memory only: it goes with its process."""
    name = names.queue(subscription)
    if subscription.ephemeral:
        expires: dict[str, Any] = {"x-queue-type": "classic", "x-expires": _EPHEMERAL_EXPIRES * 1000}
        yield methods.queue_declare(name, durable=False, arguments=expires)
    else:
        yield methods.queue_declare(name, arguments=quorum_arguments())
    yield methods.queue_bind(name, names.exchange(subscription.topic), subscription.topic)
    if delays.fits(names.delayed(subscription.topic)):
        yield delays.binding(name, names.delayed(subscription.topic))
    yield delays.binding(name, delays.address_of_queue(name))


def letters(name: str) -> bytes:
    """The queue of dead letters."""
    return methods.queue_declare(name, arguments=quorum_arguments())
