"""An app's links to its brokers, on one event loop: what publishing and requests need, with or without a worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import msgspec

from carteiro.brokers import DEFAULT
from carteiro.engine.inbox import Inbox
from carteiro.engine.publisher import Publisher
from carteiro.engine.routes import PublishMiddleware
from carteiro.errors import BrokerError, BrokerUnavailable, ConfigurationError, Unroutable
from carteiro.message import REPLY_TO, Message, Outgoing, Retention, Subscription, new_id
from carteiro.policies.breaker import Breaker
from carteiro.ports.broker import Backend, Broker
from carteiro.ports.clock import Clock
from carteiro.ports.features import Capability
from carteiro.ports.store import Store

if TYPE_CHECKING:
    from carteiro.engine.outbox_file import OutboxFile

log = logging.getLogger("carteiro.app")


class Connection:
    """The link to one broker, which the app calls `name`; `identity` says which it is, whatever its name.

    `store` keeps the state of what is consumed from it, and is perhaps another backend's.
    """

    def __init__(
        self,
        name: str,
        identity: str,
        backend: Backend,
        store: Store | None,
        middleware: Sequence[PublishMiddleware],
        clock: Clock,
        publish_timeout: float,
        breaker: Breaker | None,
        outbox: OutboxFile | None,
    ) -> None:
        self.backend = backend
        self.broker: Broker = backend.broker
        self.store = store
        self.publisher = Publisher(
            self.broker, middleware, clock, publish_timeout, name=name, identity=identity, breaker=breaker,
            outbox=outbox,
            before=None if outbox is None else self._arrive,
        )  # fmt: skip
        self._name = name
        self._can_wait = outbox is not None
        self._to_declare: tuple[Sequence[Subscription], Sequence[Retention]] = (), ()
        self._connected = self._arrived = False
        self._arriving = asyncio.Lock()
        self._inbox = Inbox(self.broker, new_id(), clock)
        self._opening_inbox = asyncio.Lock()

    async def open(self, durable: Sequence[Subscription], retentions: Sequence[Retention]) -> None:
        """Connect, and declare these; with an outbox, a broker that is away may come later."""
        self._to_declare = durable, retentions
        try:
            try:
                await self._arrive()
            except BrokerUnavailable as error:
                if not self._can_wait:
                    raise
                log.warning("the broker `%s` is away, and what is published to it is kept: %s", self._name, error)
            await self.publisher.open()
        except BaseException:
            await self._leave()
            raise

    async def close(self) -> None:
        """Return when what was published is safe; nobody waits for replies any more."""
        await self._inbox.close()
        try:
            await self.publisher.close()
        finally:
            await self._leave()

    async def request(self, message: Outgoing, timeout: float) -> Message:
        """Publish, and wait for the reply; raises RequestTimeout, RequestFailed, or Unroutable at once."""
        if not self._inbox.is_open:
            async with self._opening_inbox:  # one by one: once the broker is cut off, the others need not try it
                await self.publisher.reach(self._inbox.open)
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

    async def _arrive(self) -> None:
        """Connect and declare, if that is still to be done."""
        if self._arrived:
            return
        async with self._arriving:
            if not self._connected:
                await self.broker.connect()
                self._connected = True
            if not self._arrived:
                await self.broker.declare(*self._to_declare)
                self._arrived = True

    async def _leave(self) -> None:
        if self._connected:
            self._connected = self._arrived = False
            await self.broker.close()


class Connections(Mapping[str, Connection]):
    """The links to all of an app's brokers, by name: open from `open` to `close`, all of them or none."""

    def __init__(self, connections: Mapping[str, Connection], embedded: Callable[[], Store]) -> None:
        """`embedded` opens the store for what no other store of the app's can keep."""
        self._by_name = dict(connections)
        self._embedded = embedded
        self._shared: Store | None = None
        self._opened_shared: Store | None = None
        self._opening_shared = asyncio.Lock()
        self._opened = AsyncExitStack()
        for connection in connections.values():
            if not connection.broker.features[Capability.DEDUPE]:
                connection.publisher.remember_ids(self.shared_store)

    def __getitem__(self, name: str) -> Connection:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def of(self, message: Outgoing) -> Connection:
        """The one by which this message goes."""
        return self._by_name[message.broker or DEFAULT]

    async def open(
        self, durable: Mapping[str, Sequence[Subscription]], retentions: Mapping[str, Sequence[Retention]]
    ) -> None:
        """Connect, and declare the groups of the app, so that they get what is published from now on.

        Stores are opened before those who need them, and closed after them.
        """
        async with AsyncExitStack() as opened:
            opened.push_async_callback(self._close_shared)
            for store in self._stores_apart():
                await store.connect()
                opened.push_async_callback(store.close)
            for name, connection in self.items():
                with self._naming(name):
                    await connection.open(durable[name], retentions[name])
                opened.push_async_callback(connection.close)
            self._opened = opened.pop_all()

    async def close(self) -> None:
        for connection in self.values():  # the store that keeps its ids may be another broker's
            await connection.publisher.finish_ids()
        await self._opened.aclose()

    async def shared_store(self) -> Store:
        """For what is kept of no broker's own, as the ids that one without a dedupe window is to remember: the store of
        one of them, or else the embedded one, which is opened when it is first asked for.
        """
        async with self._opening_shared:
            if self._shared is None:
                found = next((one.store for one in self.values() if one.store is not None), None)
                store = found or self._embedded()
                if found is None:
                    await store.connect()
                    self._opened_shared = store
                self._shared = store
            return self._shared

    async def _close_shared(self) -> None:
        if self._opened_shared is not None:
            await self._opened_shared.close()

    def _stores_apart(self) -> Sequence[Store]:
        """Those that no broker connects with itself."""
        own = [connection.broker.store for connection in self.values()]
        apart: list[Store] = []
        for connection in self.values():
            store = connection.store
            if store is not None and not any(store is one for one in (*own, *apart)):
                apart.append(store)
        return apart

    @contextlib.contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Among several, an error says of which broker it is."""
        try:
            yield
        except (BrokerError, ConfigurationError) as error:
            if len(self) == 1:
                raise
            raise type(error)(f"broker `{name}`: {error}") from error


def stores(
    backends: Mapping[str, Backend], given: Store | None, embedded: Callable[[], Store | None]
) -> dict[str, Store | None]:
    """The store for what is consumed from each broker.

    It is the given one; else the broker's own, which commits with it; else that of the first broker that has one; else
    the embedded one, which is asked for only then.
    """
    if given is not None:
        return dict.fromkeys(backends, given)
    shared = next((backend.store for backend in backends.values() if backend.store is not None), None)
    if shared is None:
        shared = embedded()
    return {name: shared if backend.store is None else backend.store for name, backend in backends.items()}
