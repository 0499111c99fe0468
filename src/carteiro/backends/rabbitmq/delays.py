"""Delays without a plugin, and without waiting behind others: a message goes through queues whose times add up.

Level L is a topic exchange and a quorum queue in which everything waits for 2^L tenths of a second and then goes on
to level L-1; 30 levels make 3.4 years. The routing key is the delay in binary, a word for each level, and then the
address: where a level's word is 1 its exchange puts the message into its queue, where it is 0 it hands it to the next.
All that waits in one queue waits equally long, so nothing is ever behind what is due later. Below level 0 the last
exchange knows the addresses: `<exchange>.<topic>` for what is published with a delay, `$.<queue>` for what goes back to
one queue. (The idea is NServiceBus'; theirs has 28 levels of whole seconds.)

Each step is safe: the queue gives a message up only once the next one has confirmed it (at-least-once dead-lettering,
which is for quorum queues). What has no address any more, because its group was removed meanwhile, is kept in the queue
`carteiro.unrouted`, the newest ten thousand: it must go somewhere, or it would hold up what follows.

The levels belong to the virtual host, and all who use carteiro in it share them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

from carteiro.backends.rabbitmq import methods
from carteiro.errors import UnsupportedFeature

LEVELS: Final = 30
STEP: Final = 0.1
"""Seconds: the shortest delay. What is asked for is rounded up to it."""
LONGEST: Final = STEP * (2**LEVELS - 1)
_LEVEL: Final = "carteiro.delay."
_GATE: Final = f"{_LEVEL}gate"
LAST: Final = f"{_LEVEL}end"
_UNROUTED: Final = "carteiro.unrouted"
_KEPT: Final = 10_000
_ROOM: Final = 255
"""Bytes of a routing key."""


def address_of_queue(queue: str) -> str:
    return f"$.{queue}"


def route(delay: float, address: str) -> tuple[str, str]:
    """The exchange and routing key for a message that is to be at `address` in so many seconds.

    Raises UnsupportedFeature for what is too far ahead, or has too long a name.
    """
    steps = math.ceil(round(delay / STEP, 6))
    if steps >= 2**LEVELS:
        raise UnsupportedFeature(
            f"a delay of {delay:.0f} s: RabbitMQ keeps a message for at most {LONGEST:.0f} s (3.4 years) here; publish "
            "it when its time is nearer"
        )
    key = f"{'.'.join(f'{steps:0{LEVELS}b}')}.{address}"
    if len(key.encode()) > _ROOM:
        raise UnsupportedFeature(
            f"`{address}` is too long a name for a delay on RabbitMQ: {_ROOM - 2 * LEVELS} bytes are left for it"
        )
    return _exchange(steps.bit_length() - 1), key


def is_level(exchange: str) -> bool:
    """Whether it takes all that has a delay: what it sends back has met a queue that is missing."""
    return exchange.startswith(_LEVEL)


def fits(address: str) -> bool:
    """Whether there is room for it in a routing key with a delay before it."""
    return 2 * LEVELS + len(address.encode()) <= _ROOM


def binding(queue: str, address: str) -> bytes:
    """Has what is for `address`, which may be a pattern, come to `queue` when its delay is over."""
    return methods.queue_bind(queue, LAST, f"{'*.' * LEVELS}{address}")


def declarations() -> Iterator[bytes]:
    """What makes the levels; again is harmless."""
    yield methods.exchange_declare(_UNROUTED, "fanout")
    quorum: dict[str, Any] = {"x-queue-type": "quorum", "x-max-length": _KEPT}
    yield methods.queue_declare(_UNROUTED, arguments=quorum)
    yield methods.queue_bind(_UNROUTED, _UNROUTED, "")
    for level in range(LEVELS):
        exchange, onwards = _exchange(level), _exchange(level - 1)
        yield methods.exchange_declare(exchange, "topic")
        arguments: dict[str, Any] = {
            "x-queue-type": "quorum",
            "x-message-ttl": round(STEP * 1000) * 2**level,
            "x-dead-letter-exchange": onwards,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
        yield methods.queue_declare(exchange, arguments=arguments)
        before = "*." * (LEVELS - 1 - level)
        yield methods.queue_bind(exchange, exchange, f"{before}1.#")
        if level > 0:
            yield methods.exchange_bind(onwards, exchange, f"{before}0.#")
    yield from gate()


def gate() -> Iterator[bytes]:
    """What opens the way to the addresses, after a restart of the server too; again is harmless."""
    lowest = _exchange(0)
    yield methods.exchange_declare(LAST, "topic", arguments={"alternate-exchange": _UNROUTED})
    yield methods.exchange_declare(_GATE, "fanout", durable=False)
    yield methods.exchange_bind(LAST, _GATE, "")
    yield methods.exchange_declare(lowest, "topic")
    yield methods.exchange_bind(_GATE, lowest, f"{'*.' * (LEVELS - 1)}0.#")


def _exchange(level: int) -> str:
    return _GATE if level < 0 else f"{_LEVEL}{level:02}"
