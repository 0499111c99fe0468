"""An app's link to its broker, on one event loop: what publishing and requests need, with or without a worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

import msgspec

from carteiro.engine.inbox import Inbox
from carteiro.engine.publisher import Publisher
from carteiro.engine.routes import PublishMiddleware
from carteiro.errors import Unroutable
from carteiro.message import REPLY_TO, Message, Outgoing, Retention, Subscription, new_id
from carteiro.ports.broker import Backend, Broker
from carteiro.ports.clock import Clock
from carteiro.ports.store import Store


class Connection:
    """Open from `open` to `close`."""

    def __init__(
        self,
        backend: Backend,
        store: Store | None,
        middleware: Sequence[PublishMiddleware],
        clock: Clock,
        publish_timeout: float,
    ) -> None:
        self.backend = backend
        self.broker: Broker = backend.broker
        self.store = store
        self.publisher = Publisher(self.broker, middleware, clock, publish_timeout)
        self._inbox = Inbox(self.broker, new_id(), clock)
        self._opened = AsyncExitStack()

    async def open(self, durable: Sequence[Subscription], retentions: Mapping[str, Retention]) -> None:
        """Connect, and declare the groups of the app, so that they get what is published from now on."""
        async with AsyncExitStack() as opened:
            await self.broker.connect()
            opened.push_async_callback(self.broker.close)
            if self.store is not None and self.store is not self.broker.store:
                await self.store.connect()
                opened.push_async_callback(self.store.close)
            await self.broker.declare(durable, list(retentions.values()))
            self._opened = opened.pop_all()

    async def close(self) -> None:
        await self._inbox.close()
        await self.publisher.drain()
        await self._opened.aclose()

    async def request(self, message: Outgoing, timeout: float) -> Message:
        """Publish, and wait for the reply; raises RequestTimeout, RequestFailed, or Unroutable at once."""
        await self._inbox.open()
        topic, reply = self._inbox.expect()
        asked = msgspec.structs.replace(message, headers={**message.headers, REPLY_TO: topic})
        try:
            await self.publisher.publish(asked, mandatory=True)
        except Unroutable:
            self._inbox.forget(topic)
            raise Unroutable(f"no group handles `{message.topic}`: start a worker that subscribes to it") from None
        except BaseException:
            self._inbox.forget(topic)
            raise
        return await self._inbox.reply(message.topic, topic, reply, timeout)
