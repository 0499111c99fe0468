"""The Broker port on a RabbitMQ server."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final

from carteiro.backends.rabbitmq.consumer import RabbitConsumer
from carteiro.backends.rabbitmq.inspector import RabbitInspector
from carteiro.backends.rabbitmq.natives import OWN_TOPICS, RabbitQueue
from carteiro.backends.rabbitmq.publishing import Publisher, Unconfirmed
from carteiro.backends.rabbitmq.server import Server
from carteiro.backends.rabbitmq.settling import outgoing
from carteiro.errors import BrokerError, ConfigurationError, UnsupportedFeature
from carteiro.message import Outgoing, Retention, Subscription
from carteiro.ports.broker import Unrouted
from carteiro.ports.features import NATIVE, Capability, Features, Support

_LEVELS: Final = Support("emulated", "30 queues whose times add up, in steps of 0.1 s, for up to 3.4 years")
FEATURES: Final = Features(
    "rabbitmq",
    {
        Capability.GROUPS: Support("native", "a quorum queue for each topic and group"),
        Capability.BROADCAST: Support("native", "a queue in memory a process, gone with it, or after 5 min"),
        Capability.PATTERNS: NATIVE,
        Capability.DELAY: _LEVELS,
        Capability.RETRY: _LEVELS,
        Capability.DEAD_LETTERS: Support(
            "emulated", "a quorum queue, read by getting its letters and giving them back"
        ),
        Capability.INSPECT: Support("emulated", "a list of the groups, kept in a queue"),
        Capability.MULTIPROCESS: NATIVE,
        Capability.DURABLE: Support("native", "quorum queues and publisher confirms"),
        Capability.ORDERED: Support("unsupported", "its queues give each message to whoever is free"),
        Capability.DEDUPE: Support("unsupported", "it remembers no ids: the store of the app does"),
        Capability.RETENTION: Support(
            "unsupported", 'its queues keep nothing that is acked; RabbitQueue(type="stream") does'
        ),
        Capability.ATOMIC: Support("unsupported", "what a handler emits is confirmed before the ack, not with it"),
        Capability.STORE: Support(
            "unsupported", "it keeps no state; the app has the embedded store, or the one of store="
        ),
        Capability.PEEK: Support("unsupported", "to look at a message is to deliver it"),
        Capability.COUNTS: Support("unsupported", "AMQP tells only what waits"),
    },
)
_REMEMBERED: Final = 50_000


class RabbitBroker(RabbitInspector):
    """Publishes, declares, and hands out consumers; `RabbitInspector` adds what an operator sees and does."""

    features = FEATURES
    store = None

    def __init__(self, server: Server) -> None:
        self._publisher = Publisher(server)
        super().__init__(server, self._publisher)
        self.unrouted = Unrouted()
        self._users = False
        self._consumers: set[RabbitConsumer] = set()
        self._out: dict[Outgoing, None] = {}  # what was confirmed of calls that failed

    async def connect(self) -> None:
        await self._server.open()

    async def close(self) -> None:
        """Closes its consumers."""
        for consumer in list(self._consumers):
            with contextlib.suppress(BrokerError):
                await consumer.close()
        await self._server.close()

    async def declare(self, subscriptions: Sequence[Subscription], retentions: Sequence[Retention] = ()) -> None:
        for subscription in subscriptions:
            if subscription.ordered:
                raise _unsupported(f"{subscription} is ordered", Capability.ORDERED)
            if subscription.start != "latest" and subscription.source is None:
                raise _unsupported(f"{subscription} starts at {subscription.start!r}", Capability.RETENTION)
            if subscription.source is None and subscription.topic.startswith(OWN_TOPICS):
                raise ConfigurationError(
                    f"{subscription}: with `{subscription.topic.partition(':')[0]}:` the topics of RabbitMQ's own "
                    "queues and exchanges begin. Subscribe to the RabbitQueue or RabbitExchange, or name it otherwise"
                )
        for retention in retentions:
            raise _unsupported(f"`{retention.topic}` is to keep what was published", Capability.RETENTION)
        if subscriptions:
            await self._server.declare(subscriptions)

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        """The same messages again, after BrokerUnavailable, are not doubled as far as they were confirmed before."""
        left = [message for message in messages if message not in self._out] if self._out else messages
        if not left:
            return []
        await self._server.make_targets(left)
        parcels = [outgoing(self._server, message) for message in left]
        try:
            unrouted = await self._publisher.send(parcels)
            gone = frozenset(index for index in unrouted if isinstance(left[index].target, RabbitQueue))
            if gone:
                self._server.forget_made()
                raise Unconfirmed(f"the queue of `{left[min(gone)].topic}` was deleted; it is made again", gone)
        except Unconfirmed as error:
            self._out.update((message, None) for index, message in enumerate(left) if index not in error.left)
            while len(self._out) > _REMEMBERED:
                del self._out[next(iter(self._out))]
            raise
        if left is not messages:
            for message in messages:
                self._out.pop(message, None)
        return [left[index] for index in sorted(unrouted)]

    async def remove_group(self, topic: str, group: str) -> None:
        await super().remove_group(topic, group)
        for consumer in self._consumers:  # those of other processes learn it of the server
            consumer.drop(Subscription(topic, group))

    def consume(self, subscriptions: Sequence[Subscription]) -> RabbitConsumer:
        consumer = RabbitConsumer(self._server, self._publisher, subscriptions, self.unrouted, self._consumers.discard)
        self._consumers.add(consumer)
        return consumer


def _unsupported(what: str, capability: Capability) -> UnsupportedFeature:
    return UnsupportedFeature(
        f"{what}: the rabbitmq broker has no {capability.value}, since {FEATURES[capability].how}"
    )
