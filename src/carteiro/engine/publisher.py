"""The way out: publish middleware, then batches that form by themselves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from carteiro.engine.batcher import Batcher
from carteiro.engine.reconnect import reconnect_wait
from carteiro.engine.routes import PublishMiddleware
from carteiro.errors import BrokerUnavailable, Unroutable
from carteiro.message import Native, Outgoing
from carteiro.ports.broker import Broker
from carteiro.ports.clock import Clock
from carteiro.ports.native import check_system

log = logging.getLogger("carteiro.publisher")

LARGEST = 5000


class Publisher:
    """Publishes for one broker. Concurrent calls share batches; each returns when its own batch is safe.

    While the broker is away calls wait up to `timeout` seconds, then raise BrokerUnavailable.
    """

    def __init__(self, broker: Broker, middleware: Sequence[PublishMiddleware], clock: Clock, timeout: float) -> None:
        self._broker = broker
        self._middleware = tuple(middleware)
        self._clock = clock
        self._timeout = timeout
        self._batcher = Batcher(self._send, limit=LARGEST)
        self.drain = self._batcher.drain

    async def publish(self, message: Outgoing, *, mandatory: bool = False) -> None:
        """Returns when the message is safe. With `mandatory`, raises Unroutable if no group gets it."""
        if message.target is not None:
            self._check(message.target)
        if self._middleware:
            await self._chain(message, lambda outgoing: self._post(outgoing, mandatory))
        else:
            await self._post(message, mandatory)

    async def publish_many(self, messages: Sequence[Outgoing], *, mandatory: bool = False) -> None:
        """Returns when all are safe: whole batches at once, so that a crash can leave a part published."""
        if messages and messages[0].target is not None:
            self._check(messages[0].target)
        for start in range(0, len(messages), LARGEST):
            part = messages[start : start + LARGEST]
            if self._middleware:  # one after another, since the order is part of the promise
                part = [sent for message in part for sent in await self.intercept(message)]
            if part:
                await self._deliver(part, mandatory)

    async def intercept(self, message: Outgoing) -> list[Outgoing]:
        """What middleware makes of a message that goes out with others: its `call_next` returns before that is safe."""
        sent: list[Outgoing] = []

        async def collect(outgoing: Outgoing) -> None:
            sent.append(outgoing)

        await self._chain(message, collect)
        return sent

    async def _chain(self, message: Outgoing, last: Callable[[Outgoing], Awaitable[None]]) -> None:
        call = last
        for layer in reversed(self._middleware):
            call = _layer(layer, call)
        await call(message)

    async def _post(self, message: Outgoing, mandatory: bool) -> None:
        posted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._batcher.add((message, posted))
        routed = await posted
        if not routed:
            self._unrouted(message, mandatory)

    async def _send(self, batch: list[tuple[Outgoing, asyncio.Future[bool]]]) -> None:
        try:
            unrouted = set(await self._publish([message for message, _ in batch]))
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, BrokerUnavailable):
                for one in batch:  # one of them cannot be published: the others can
                    await self._send([one])
                return
            for _, posted in batch:
                if not posted.done():
                    posted.set_exception(error)
            return
        for message, posted in batch:
            if not posted.done():
                posted.set_result(message not in unrouted)

    async def _deliver(self, messages: Sequence[Outgoing], mandatory: bool) -> None:
        for message in await self._publish(messages):
            self._unrouted(message, mandatory)

    async def _publish(self, messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        until = self._clock.monotonic() + self._timeout
        tries = 0
        while True:
            try:
                return await self._broker.publish(messages)
            except BrokerUnavailable as error:
                wait = reconnect_wait(tries)
                if self._clock.monotonic() + wait > until:
                    raise
                log.warning("%d messages wait for the broker: %s", len(messages), error)
                await self._clock.sleep(wait)
                tries += 1

    def _check(self, target: Native) -> None:
        check_system(target, self._broker.features, "a publish")

    def _unrouted(self, message: Outgoing, mandatory: bool) -> None:
        if mandatory:
            raise Unroutable(
                f"no group gets `{message.topic}`: start a worker that subscribes to it, or drop mandatory=True"
            )
        self._broker.unrouted.note(message)


def _layer(
    layer: PublishMiddleware, call_next: Callable[[Outgoing], Awaitable[None]]
) -> Callable[[Outgoing], Awaitable[None]]:
    return lambda outgoing: layer(outgoing, call_next)
