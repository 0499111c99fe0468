"""The way out: publish middleware, then batches that form by themselves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from carteiro.engine.batcher import Batcher
from carteiro.engine.ids import Ids
from carteiro.engine.reconnect import FIRST, reconnect_wait
from carteiro.engine.routes import PublishMiddleware
from carteiro.errors import BrokerUnavailable, CircuitOpen, Unroutable
from carteiro.message import NO_HEADERS, Native, Outgoing, new_id
from carteiro.policies.breaker import Breaker, BreakerStatus, Circuit
from carteiro.ports.broker import Broker
from carteiro.ports.clock import Clock
from carteiro.ports.features import Capability
from carteiro.ports.native import check_system
from carteiro.ports.store import Store

if TYPE_CHECKING:
    from carteiro.engine.outbox import Outbox, Send
    from carteiro.engine.outbox_file import OutboxFile, OutboxStatus

log = logging.getLogger("carteiro.publisher")

T = TypeVar("T")

LARGEST = 5000
MOMENT: Final = 1.0
"""Seconds for which a publish waits for a broker that is away before it goes to the outbox: a hiccup fills none."""


class Publisher:
    """Publishes to one broker, which the app calls `name`; `identity` says which it is, whatever its name. Concurrent
    calls share batches; each returns when its own batch is safe.

    While the broker is away calls wait up to `timeout` seconds, then raise BrokerUnavailable. With a breaker they raise
    CircuitOpen once it has cut the broker off. With an outbox they wait for a moment, and what they publish is kept
    there; not so what is `mandatory`, since nobody knows yet who will get it. `before` is awaited before each try: what
    has to be done first, as connecting, and may raise BrokerUnavailable.
    """

    def __init__(
        self,
        broker: Broker,
        middleware: Sequence[PublishMiddleware],
        clock: Clock,
        timeout: float,
        *,
        name: str = "default",
        identity: str = "default",
        breaker: Breaker | None = None,
        outbox: OutboxFile | None = None,
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._broker = broker
        self._middleware = tuple(middleware)
        self._clock = clock
        self._timeout = timeout
        self._before = before
        self._identity = identity
        self._ids: Ids | None = None
        self._name = name
        self._circuit = None if breaker is None else Circuit(breaker, name, clock, self._probe)
        self._straight = Batcher(partial(self._send, self._publish), limit=LARGEST)
        self._outbox: Outbox | None = None
        self._safely = self._straight
        if outbox is not None:
            from carteiro.engine.outbox import Outbox  # and sqlite3 with it

            self._outbox = Outbox(
                outbox, name, identity, clock, send=self._publish_soon, forward=self._publish_now,
                dedupes=bool(broker.features[Capability.DEDUPE]), unrouted=broker.unrouted,
            )  # fmt: skip
            self._safely = Batcher(partial(self._send, self._outbox.publish), limit=LARGEST)

    def remember_ids(self, store: Callable[[], Awaitable[Store]]) -> None:
        """Have what `store` opens keep the dedupe window, for a broker that keeps none."""
        self._ids = Ids(store, self._identity, self._clock, self._timeout)

    async def finish_ids(self) -> None:
        """Return when what has ids is published and marked, also of calls that were cancelled."""
        if self._ids is not None:
            await self._ids.finish()

    @property
    def breaker(self) -> BreakerStatus | None:
        """How it stands with the breaker, if there is one."""
        return None if self._circuit is None else self._circuit.status

    async def outbox(self) -> OutboxStatus | None:
        """What the outbox holds for this broker, if there is one."""
        return None if self._outbox is None else await self._outbox.status()

    async def open(self) -> None:
        """Have the outbox forward. Raises BrokerUnavailable or BrokerCorrupted if its file cannot be used."""
        if self._outbox is not None:
            await self._outbox.open()

    async def close(self) -> None:
        """Return when all that was published is safe, and nothing is forwarded any more."""
        await self.finish_ids()
        await self._straight.drain()
        await self._safely.drain()
        if self._outbox is not None:
            await self._outbox.close()
        if self._circuit is not None:
            await self._circuit.close()

    async def publish(self, message: Outgoing, *, mandatory: bool = False) -> None:
        """Returns when the message is safe. With `mandatory`, raises Unroutable if no group gets it."""
        if message.target is not None:
            self._check(message.target)
        if self._middleware:
            await self._chain(message, lambda outgoing: self._post(outgoing, mandatory))
        else:
            await self._post(message, mandatory)

    async def publish_many(
        self, messages: Sequence[Outgoing], *, mandatory: bool = False, patience: float | None = None
    ) -> None:
        """Returns when all are safe: whole batches at once, so that a crash can leave a part published.

        What goes to the outbox goes there in one commit. `patience`: seconds to wait for a broker that is away, in
        place of `timeout`.
        """
        if messages and messages[0].target is not None:
            self._check(messages[0].target)
        put: Send = partial(self._publish, patience=patience)
        size = LARGEST
        if self._outbox is not None and not mandatory:
            put, size = self._outbox.publish, max(1, len(messages))
        for start in range(0, len(messages), size):
            part = await self._all_sent(messages[start : start + size])
            if part:
                for message in await self._once(part, put):
                    self._unrouted(message, mandatory)

    async def forward(self, messages: Sequence[Outgoing]) -> None:
        """Publish what has been through middleware, in one try: returns when all of it is safe.

        Raises BrokerUnavailable where the broker is away and there is no outbox.
        """
        put = self._publish_now if self._outbox is None else self._outbox.publish
        for message in await self._once(messages, put):
            self._unrouted(message, False)

    async def reach(self, call: Callable[[], Awaitable[T]]) -> T:
        """Await `call`, which the broker has to answer, as if it were a publish."""
        return await self._patiently(call, self._timeout)

    async def intercept(self, message: Outgoing) -> list[Outgoing]:
        """What middleware makes of a message that goes out with others: its `call_next` returns before that is safe."""
        sent: list[Outgoing] = []

        async def collect(outgoing: Outgoing) -> None:
            sent.append(outgoing)

        await self._chain(message, collect)
        return sent

    async def _all_sent(self, messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        """What middleware makes of them, one after another, since the order is part of the promise."""
        if not self._middleware:
            return messages
        return [sent for message in messages for sent in await self.intercept(message)]

    async def _chain(self, message: Outgoing, last: Callable[[Outgoing], Awaitable[None]]) -> None:
        call = last
        for layer in reversed(self._middleware):
            call = _layer(layer, call)
        await call(message)

    async def _once(self, messages: Sequence[Outgoing], put: Send) -> Collection[Outgoing]:
        """Publish what was not published before, as far as it has ids; those that no group gets."""
        if self._ids is None or all(message.dedupe is None for message in messages):
            return await put(messages)
        return await self._ids.publish(messages, put)

    async def _post(self, message: Outgoing, mandatory: bool) -> None:
        if self._ids is None or message.dedupe is None:
            routed = await self._join(message, mandatory)
        else:
            routed = not await self._ids.publish([message], partial(self._join_all, mandatory))
        if not routed:
            self._unrouted(message, mandatory)

    async def _join(self, message: Outgoing, mandatory: bool) -> bool:
        """Publish it with others; whether a group gets it."""
        posted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        (self._straight if mandatory else self._safely).add((message, posted))
        return await posted

    async def _join_all(self, mandatory: bool, messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        return [message for message in messages if not await self._join(message, mandatory)]

    async def _send(self, publish: Send, batch: list[tuple[Outgoing, asyncio.Future[bool]]]) -> None:
        try:
            unrouted = set(await publish([message for message, _ in batch]))
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, BrokerUnavailable):
                for one in batch:  # one of them cannot be published: the others can
                    await self._send(publish, [one])
                return
            for _, posted in batch:
                if not posted.done():
                    posted.set_exception(error)
            return
        for message, posted in batch:
            if not posted.done():
                posted.set_result(message not in unrouted)

    # -- reaching the broker ---------------------------------------------------------------------------------------

    async def _publish(self, messages: Sequence[Outgoing], patience: float | None = None) -> Sequence[Outgoing]:
        timeout = self._timeout if patience is None else patience
        return await self._patiently(lambda: self._broker.publish(messages), timeout)

    async def _publish_soon(self, messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        """For what has another place to go to."""
        return await self._patiently(lambda: self._broker.publish(messages), min(self._timeout, MOMENT))

    async def _publish_now(self, messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        return await self._try(lambda: self._broker.publish(messages))

    async def _patiently(self, call: Callable[[], Awaitable[T]], timeout: float) -> T:
        until = self._clock.monotonic() + timeout
        tries = 0
        while True:
            try:
                return await self._try(call)
            except CircuitOpen:
                raise
            except BrokerUnavailable as error:
                wait = reconnect_wait(tries)
                if self._circuit is not None:
                    wait = min(wait, max(FIRST, self._circuit.patience))
                if self._clock.monotonic() + wait > until:
                    raise
                log.warning("publishing waits for the broker `%s`: %s", self._name, error)
                await self._clock.sleep(wait)
                tries += 1

    async def _try(self, call: Callable[[], Awaitable[T]]) -> T:
        before = self._before
        if before is None:
            return await (call() if self._circuit is None else self._circuit.call(call))

        async def both() -> T:
            await before()
            return await call()

        return await (both() if self._circuit is None else self._circuit.call(both))

    async def _probe(self) -> None:
        """To a topic that nobody's pattern matches: it goes as far as the broker, and no further."""
        if self._before is not None:
            await self._before()
        id = new_id()
        await self._broker.publish([Outgoing(id, "$probe", b"", None, NO_HEADERS, id)])

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
