"""The Broker port on a Redis server."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final

from carteiro.backends.redis.consumer import RedisConsumer
from carteiro.backends.redis.inspector import RedisInspector
from carteiro.backends.redis.keeper import Keeper
from carteiro.backends.redis.publishing import Rows
from carteiro.backends.redis.sender import Sender
from carteiro.backends.redis.server import Server
from carteiro.backends.redis.store import RedisStore
from carteiro.errors import BrokerError
from carteiro.message import Outgoing, Retention, Subscription
from carteiro.ports.broker import Unrouted
from carteiro.ports.features import NATIVE, Capability, Features, Support

_HOW: Final = {
    Capability.BROADCAST: Support("native", "an ephemeral group a process, gone 30 s after it"),
    Capability.DURABLE: Support("native", "as safe as the server's AOF makes it: `appendfsync`, and its replicas"),
}
FEATURES: Final = Features("redis", {capability: _HOW.get(capability, NATIVE) for capability in Capability})


class RedisBroker(RedisInspector):
    """Publishes, declares, and hands out consumers; `RedisInspector` adds what an operator sees and does."""

    features = FEATURES

    def __init__(self, server: Server, store: RedisStore) -> None:
        super().__init__(server)
        self.store = store
        self.unrouted = Unrouted()
        self._connected = False
        self._consumers: set[RedisConsumer] = set()
        self._sender = Sender(server)
        self._keeper = Keeper(server, lambda: self._consumers)

    async def connect(self) -> None:
        if not self._connected:
            await self._server.link.open()
            # A process that forks may have made this broker: its children must not name rows and batches alike.
            self._server.rows, self._sender = Rows(), Sender(self._server)
            self._connected = True
            self._keeper.start()

    async def close(self) -> None:
        """Closes its consumers."""
        if self._connected:
            self._connected = False
            await self._keeper.stop()
            for consumer in list(self._consumers):
                with contextlib.suppress(BrokerError):  # what cannot be tidied away now expires by itself
                    await consumer.close()
            await self._server.link.close()

    async def declare(self, subscriptions: Sequence[Subscription], retentions: Sequence[Retention] = ()) -> None:
        if subscriptions or retentions:
            await self._server.declare(subscriptions, retentions)

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        """The same messages again, after BrokerUnavailable, are not doubled if the first time they were published."""
        return await self._sender.send(messages) if messages else []

    def consume(self, subscriptions: Sequence[Subscription]) -> RedisConsumer:
        consumer = RedisConsumer(self._server, subscriptions, self.unrouted, self._consumers.discard)
        self._consumers.add(consumer)
        self._keeper.joined()
        return consumer
