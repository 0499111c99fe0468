"""What is called how on the server.

With the default prefix `orders.placed@shop` is the queue of the topic
`orders.placed` and the group `shop`, and `dlq_orders.placed` its dead letters; with another one, that and a dot come
first.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

import msgspec

from carteiro.backends.rabbitmq import delays
from carteiro.backends.rabbitmq.address import DEFAULT_PREFIX
from carteiro.backends.rabbitmq.natives import native_queue
from carteiro.message import Subscription

_DIGEST: Final = 24
_PRIVATE: Final = "$"
"""With it topics begin that are carteiro's own: a pattern that begins with a wildcard does not get them."""


class Names(msgspec.Struct, frozen=True):
    """The names under one prefix."""

    prefix: str

    @property
    def register(self) -> str:
        """The queue that holds the list of groups."""
        return f"{self.prefix}.groups"

    def exchange(self, topic: str) -> str:
        """Where a topic's messages are published: `$` topics apart, so that no `#` gets them."""
        return f"{self.prefix}.private" if topic.startswith(_PRIVATE) else self.prefix

    def exchanges(self) -> tuple[str, str]:
        return self.exchange(""), self.exchange(_PRIVATE)

    def queue(self, subscription: Subscription) -> str:
        """Of a subscription: a RabbitQueue is called what it is. A long name is cut, and told apart by what follows."""
        native = native_queue(subscription.topic)
        if native is not None:
            return native
        name = self._own(f"{subscription.topic}@{subscription.group}")
        if delays.fits(delays.address_of_queue(name)):
            return name
        digest = blake2b(name.encode(), digest_size=_DIGEST // 2).hexdigest()
        cut = name.encode()
        while not delays.fits(delays.address_of_queue(f"{cut.decode('utf-8', 'ignore')}~{digest}")):
            cut = cut[:-1]
        return f"{cut.decode('utf-8', 'ignore')}~{digest}"

    def position(self, subscription: Subscription) -> str:
        """The queue that holds how far a group has read its stream."""
        return f"{self.queue(subscription)}.position"

    def letters(self, dead_queue: str) -> str:
        """The queue of the dead letters that carteiro knows as `dead_queue`."""
        return self._own(dead_queue)

    def delayed(self, topic: str) -> str:
        """The address of a topic below the levels of delay."""
        return f"{self.prefix}.{topic}"

    def _own(self, name: str) -> str:
        return name if self.prefix == DEFAULT_PREFIX else f"{self.prefix}.{name}"
