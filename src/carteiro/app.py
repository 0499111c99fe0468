"""The app: what a user declares, and its life from connecting to stopping."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, TypeVar

from carteiro.building import Builder, Defaults, Overrides, check_emits, check_features, subscriptions
from carteiro.connection import Connection
from carteiro.current import current
from carteiro.durations import Duration, seconds
from carteiro.engine.composing import check_text, compose, described
from carteiro.engine.deadlines import Deadlines
from carteiro.engine.endings import Surroundings
from carteiro.engine.routes import ConsumeMiddleware, PublishMiddleware
from carteiro.engine.worker import Worker
from carteiro.errors import ConfigurationError, NotConnected
from carteiro.handlers.codecs import Codec, decoder, encode
from carteiro.handlers.signature import describe
from carteiro.message import CONTENT_TYPE, EXPIRES_AT, NO_HEADERS, TYPE, Native, Outgoing, Subscription, new_id
from carteiro.policies.retry import Retry
from carteiro.ports.broker import Backend
from carteiro.ports.clock import SYSTEM_CLOCK, Clock
from carteiro.ports.native import named
from carteiro.ports.registry import open_backend
from carteiro.router import Router, Subscriber
from carteiro.sync import SyncBridge
from carteiro.topics import matches

log = logging.getLogger("carteiro.app")

T = TypeVar("T")
PM = TypeVar("PM", bound=PublishMiddleware)
CM = TypeVar("CM", bound=ConsumeMiddleware)

BROKER_VARIABLE = "CARTEIRO_BROKER"
EMBEDDED = "sqlite:///carteiro.db"


class Carteiro(Router):
    """One service: its handlers, its broker, its worker.

    `name` is the default group of its subscribers. `broker` is a URL; by default the environment variable
    CARTEIRO_BROKER, or else the embedded broker in `./carteiro.db`. `retry` and `lease` (the time after which the
    messages of a worker that says nothing go to others) hold for subscribers that have none of their own. `dedupe` is
    the window in which a message id that the publisher chose is taken once. `grace` is how long handlers may go on when
    the app stops; `publish_timeout` how long a publish waits for a broker that is away. Times are seconds, timedeltas
    or text such as `"30s"`. `store` is a URL, for brokers that keep no state of their own. `codec` is how bodies are
    written: `"json"` or `"msgpack"`; both are read. `lifespan`, an async context manager that takes the app, holds what
    the handlers need while they run, such as a pool of connections.
    """

    def __init__(
        self,
        name: str,
        broker: str | Backend | None = None,
        *,
        store: str | None = None,
        retry: Retry | None = None,
        lease: Duration = 30.0,
        dedupe: Duration = "2m",
        grace: Duration = 30.0,
        publish_timeout: Duration = 30.0,
        codec: Codec = "json",
        middleware: Sequence[ConsumeMiddleware] = (),
        publish_middleware: Sequence[PublishMiddleware] = (),
        lifespan: Callable[[Carteiro], AbstractAsyncContextManager[object]] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if not name or any(letter.isspace() for letter in name):
            raise ConfigurationError(f"an app needs a name without spaces, not {name!r}: it is its default group")
        if codec not in ("json", "msgpack"):
            raise ConfigurationError(f'codec="{codec}": it is "json" or "msgpack"')
        super().__init__()
        self.name = name
        self.clock = clock
        self.overrides: dict[Callable[..., Any], Callable[..., Any]] = {}
        """Dependencies to use in place of others, in tests: `app.overrides[session] = fake_session`."""
        self._broker = broker
        self._store = store
        self._retry = retry or Retry()
        self._lease = seconds(lease)
        self._dedupe = seconds(dedupe)
        self._grace = seconds(grace)
        self._publish_timeout = seconds(publish_timeout)
        self._codec: Codec = codec
        self._consume_middleware = list(middleware)
        self._publish_middleware = list(publish_middleware)
        self._resources = lifespan or (lambda app: contextlib.nullcontext())
        self._connection: Connection | None = None
        self._users = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening: asyncio.Task[Connection] | None = None
        self._instance = os.getpid(), new_id()
        self._worker: Worker | None = None
        self._stop_asked = False
        self._awaiting_ready: list[asyncio.Future[None]] = []
        self._sync = SyncBridge(self._connect)
        if self._lease <= 0:
            raise ConfigurationError("lease= must be over 0 seconds")

    # -- middleware ------------------------------------------------------------------------------------------------

    def middleware(self, function: CM) -> CM:
        """Wrap the handling of each message: `async (message, call_next)`. The first one installed is the outermost."""
        self._consume_middleware.append(function)
        return function

    def publish_middleware(self, function: PM) -> PM:
        """Wrap the publishing of each message, also of what handlers emit: `async (outgoing, call_next)`."""
        self._publish_middleware.append(function)
        return function

    # -- publishing ------------------------------------------------------------------------------------------------

    async def publish(
        self,
        topic: str | Native,
        value: Any,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        type: str | None = None,
        delay: Duration | None = None,
        at: datetime | None = None,
        expires: Duration | None = None,
        id: str | None = None,
        correlation_id: str | None = None,
        mandatory: bool = False,
    ) -> str:
        """Publish `value` and return its message id once the broker has it safe.

        `topic` is a name, or an object of the broker's own such as `RedisList("jobs")`.
        `delay` or `at` (aware): not before then. `expires`: not handled any more after so long. `id`: a second
        message with it within the app's dedupe window is dropped. `mandatory`: raise Unroutable if no group gets it.
        Raises BrokerUnavailable if the broker stays away for the app's `publish_timeout`.
        """
        connection = self._connected()
        message = self.outgoing(
            topic, value, key=key, headers=headers, type=type, delay=delay, at=at, expires=expires, id=id,
            correlation_id=correlation_id,
        )  # fmt: skip
        await connection.publisher.publish(message, mandatory=mandatory)
        return message.id

    async def publish_many(
        self,
        topic: str | Native,
        values: Iterable[Any],
        *,
        key: Callable[[Any], str | None] | None = None,
        id: Callable[[Any], str] | None = None,
        headers: Mapping[str, str] | None = None,
        delay: Duration | None = None,
        mandatory: bool = False,
    ) -> list[str]:
        """Publish each of `values`, in order, in large batches; returns their ids. `key` and `id` are functions."""
        connection = self._connected()
        messages = self.outgoing_many(topic, values, key=key, id=id, headers=headers, delay=delay)
        await connection.publisher.publish_many(messages, mandatory=mandatory)
        return [message.id for message in messages]

    async def request(
        self,
        topic: str,
        value: Any,
        *,
        timeout: Duration = 30.0,
        returns: Any = Any,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        type: str | None = None,
    ) -> Any:
        """Publish, and return what the handler returned, decoded as `returns`.

        Raises RequestTimeout, RequestFailed with the remote error if the handler gave up on it, Unroutable if there is
        no handler at all.
        """
        connection = self._connected()
        message = self.outgoing(topic, value, key=key, headers=headers, type=type, expires=timeout)
        return decoder(returns)(await connection.request(message, seconds(timeout)))

    def publish_sync(self, topic: str | Native, value: Any, *, mandatory: bool = False, **options: Any) -> str:
        """`publish` for code that has no event loop; takes the same options and can be called from any thread."""
        message = self.outgoing(topic, value, **options)
        self._sync.call(lambda connection: connection.publisher.publish(message, mandatory=mandatory))
        return message.id

    def publish_many_sync(
        self, topic: str | Native, values: Iterable[Any], *, mandatory: bool = False, **options: Any
    ) -> list[str]:
        """`publish_many` for code that has no event loop; takes the same options."""
        messages = self.outgoing_many(topic, values, **options)
        self._sync.call(lambda connection: connection.publisher.publish_many(messages, mandatory=mandatory))
        return [message.id for message in messages]

    def request_sync(
        self, topic: str, value: Any, *, timeout: Duration = 30.0, returns: Any = Any, **options: Any
    ) -> Any:
        """`request` for code that has no event loop."""
        message = self.outgoing(topic, value, expires=timeout, **options)
        return decoder(returns)(self._sync.call(lambda connection: connection.request(message, seconds(timeout))))

    def outgoing(
        self,
        topic: str | Native,
        value: Any,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        type: str | None = None,
        delay: Duration | None = None,
        at: datetime | None = None,
        expires: Duration | None = None,
        id: str | None = None,
        correlation_id: str | None = None,
    ) -> Outgoing:
        """The message that `publish` sends, encoded."""
        written = dict(headers) if headers else {}
        if type is not None:
            written[TYPE] = type
        if expires is not None:
            written[EXPIRES_AT] = repr(self.clock.time() + seconds(expires))
        wait = 0.0 if delay is None else seconds(delay)
        if at is not None:
            if at.tzinfo is None or delay is not None:
                raise ConfigurationError(f"at={at!r} for `{topic}`: give an aware datetime, and no delay beside it")
            wait = max(0.0, at.timestamp() - self.clock.time())
        name, target = named(topic)
        message_id = new_id() if id is None else id
        return compose(
            name, value, id=message_id, key=key, headers=written,
            correlation_id=correlation_id or _flow() or message_id, delay=wait, codec=self._codec,
            dedupe=None if id is None else self._dedupe, target=target,
        )  # fmt: skip

    def outgoing_many(
        self,
        topic: str | Native,
        values: Iterable[Any],
        *,
        key: Callable[[Any], str | None] | None = None,
        id: Callable[[Any], str] | None = None,
        headers: Mapping[str, str] | None = None,
        delay: Duration | None = None,
    ) -> list[Outgoing]:
        """The messages that `publish_many` sends, encoded. What they share is worked out once."""
        name, target = named(topic)
        shared = described(name, headers or NO_HEADERS, None)
        wait = 0.0 if delay is None else seconds(delay)
        flow, codec = _flow(), self._codec
        window = None if id is None else self._dedupe
        messages: list[Outgoing] = []
        for value in values:
            body, content_type = encode(value, codec=codec)
            written = shared if content_type is None else {CONTENT_TYPE: content_type, **shared}
            message_id = new_id() if id is None else id(value)
            message_key = None if key is None else key(value)
            if key is not None or id is not None:
                check_text(name, id=message_id, key=message_key)
            message = Outgoing(message_id, name, body, message_key, written, flow or message_id, wait, window, target)
            if target is not None:
                target.check_outgoing(message)
            messages.append(message)
        return messages

    # -- its life --------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Carteiro:
        """Connect for publishing and requests; the app's groups are declared. Handles nothing: see `run`."""
        loop = asyncio.get_running_loop()
        if self._users and self._loop is not loop:
            raise ConfigurationError(f"app `{self.name}` is in use on another event loop of this process")
        self._loop = loop
        self._users += 1
        try:
            if self._opening is None:
                self._opening = loop.create_task(self._connect())
            self._connection = await asyncio.shield(self._opening)
        except BaseException:
            await self.__aexit__()
            raise
        self._sync.use(self._connection, loop)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._users -= 1
        if self._users:
            return
        opening, self._opening, self._connection = self._opening, None, None
        self._sync.use(None, None)
        if opening is None:
            return
        await asyncio.wait([opening])
        if not opening.cancelled() and opening.exception() is None:
            await opening.result().close()

    async def run(self, *, only: Sequence[str] = (), concurrency: int | None = None) -> None:
        """Handle messages until it is cancelled or `stop` is called; a second cancel skips the grace.

        `only` limits it to these groups or topics; `concurrency` is for subscribers that have none of their own.
        """
        self._stop_asked = False
        async with self, _always_closed(self._resources(self)):
            builder, worker = await self._build(only, concurrency)
            try:
                await builder.start()
                await self._work(worker)
            finally:
                await builder.close()

    async def ready(self) -> None:
        """Return once `run` consumes."""
        if self._worker is None:
            waiter = asyncio.get_running_loop().create_future()
            self._awaiting_ready.append(waiter)
            await waiter

    def stop(self) -> None:
        """Have `run` return, once it has started: what runs gets its grace. A second call skips the grace."""
        self._stop_asked = True
        if self._worker is not None:
            self._worker.request_stop()

    @contextlib.asynccontextmanager
    async def lifespan(
        self, api: object = None, *, workers: bool = True, only: Sequence[str] = ()
    ) -> AsyncIterator[None]:
        """For ASGI frameworks: `FastAPI(lifespan=app.lifespan)`. `workers=False` only publishes; `only` is `run`'s."""
        async with self:
            if not workers:
                yield
                return
            running = asyncio.create_task(self.run(only=only), name="carteiro worker")
            ready = asyncio.create_task(self.ready())
            try:
                await asyncio.wait((running, ready), return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                running.cancel()
                await asyncio.wait([running])
                raise
            finally:
                ready.cancel()
            if running.done():
                running.result()
            running.add_done_callback(_tell_of_death)
            try:
                yield
            finally:
                self.stop()
                await running

    @property
    def instance(self) -> str:
        """Names the groups that are this process's own, those of its broadcasts: a fork of it has another."""
        process, name = self._instance
        if process != os.getpid():
            name = new_id()
            self._instance = os.getpid(), name
        return name

    @property
    def worker(self) -> Worker | None:
        """The running worker, if there is one."""
        return self._worker

    @property
    def connection(self) -> Connection:
        """Its broker, store and publisher; raises NotConnected outside `async with app` and `run`."""
        return self._connected()

    @property
    def url(self) -> str:
        """The broker's URL, as given, by the environment, or the embedded one."""
        if isinstance(self._broker, str):
            return self._broker
        if self._broker is not None:
            return f"{self._broker.broker.features.backend}://"
        return os.environ.get(BROKER_VARIABLE) or EMBEDDED

    # -- from what is declared to what runs ------------------------------------------------------------------------

    def declared(self) -> dict[Subscription, list[Subscriber]]:
        """Its subscriptions and the subscribers behind each; raises ConfigurationError where they cannot be."""
        for function in self._stray_publishers():
            raise ConfigurationError(
                f"{describe(function)} has a `@publisher` and is no subscriber of app `{self.name}`, so that nothing "
                "would be published: put it next to `@subscriber`, with no other decorator between them"
            )
        return subscriptions(self._publishing(), self._defaults(None))

    @contextlib.contextmanager
    def on(self, backend: Backend, *, clock: Clock, overrides: Overrides) -> Iterator[None]:
        """Let it run on another backend, by another clock, with dependencies replaced: for tests."""
        before = self._broker, self._store, self.clock, self.overrides
        self._broker, self._store, self.clock, self.overrides = backend, None, clock, {**self.overrides, **overrides}
        try:
            yield
        finally:
            self._broker, self._store, self.clock, self.overrides = before

    def open_backend(self) -> Backend:
        """Its backend, not yet connected."""
        if self._broker is None or isinstance(self._broker, str):
            return open_backend(self.url, clock=self.clock)
        return self._broker

    async def _connect(self) -> Connection:
        declared = self.declared()
        backend = self.open_backend()
        check_features(declared, backend.broker.features)
        connection = Connection(
            backend,
            open_backend(self._store, clock=self.clock).store if self._store else backend.store,
            self._publish_middleware,
            self.clock,
            self._publish_timeout,
        )
        durable = [subscription for subscription in declared if not subscription.ephemeral]
        await connection.open(durable, self._retentions)
        return connection

    async def _build(self, only: Sequence[str], concurrency: int | None) -> tuple[Builder, Worker]:
        connection = self._connected()
        chosen = {
            subscription: sharing
            for subscription, sharing in self.declared().items()
            if not only or subscription.group in only or any(matches(subscription.topic, name) for name in only)
        }
        if not chosen:
            among = f" among {', '.join(only)}" if only else ""
            raise ConfigurationError(f"app `{self.name}` has no subscribers{among}: there is nothing to run")
        builder = Builder(self._defaults(concurrency), self.overrides)
        routes = [builder.route(subscription, sharing) for subscription, sharing in chosen.items()]
        check_emits(routes, connection.broker.features)
        await connection.broker.declare([subscription for subscription in chosen if subscription.ephemeral])
        around = Surroundings(
            self.clock,
            Deadlines(self.clock),
            connection.store,
            connection.publisher.intercept if self._publish_middleware else None,
            self._codec,
        )
        return builder, Worker(connection.broker, routes, around)

    async def _work(self, worker: Worker) -> None:
        if self._worker is not None:
            raise ConfigurationError(f"app `{self.name}` is running already in this process")
        self._worker = worker
        worker.start()
        if self._stop_asked:
            worker.request_stop()
        for waiter in self._awaiting_ready:
            if not waiter.done():
                waiter.set_result(None)
        self._awaiting_ready.clear()
        try:
            await worker.run_until_stopped()
        finally:
            try:
                await _despite_cancels(worker.stop(self._grace), worker.hurry)
            finally:
                self._worker = None

    def _connected(self) -> Connection:
        if self._connection is None:
            raise NotConnected(
                f"app `{self.name}` is not connected: use `async with app:` around it, `app.run()`, "
                "or `app.publish_sync(…)` where there is no event loop"
            )
        return self._connection

    def _defaults(self, concurrency: int | None) -> Defaults:
        return Defaults(
            name=self.name,
            instance=self.instance,
            retry=self._retry,
            lease=self._lease,
            concurrency=concurrency,
            middleware=tuple(self._consume_middleware),
        )


@contextlib.asynccontextmanager
async def _always_closed(resources: AbstractAsyncContextManager[object]) -> AsyncIterator[None]:
    """Leave `resources` as after a success, however the worker ended: a cancel is how most of them end."""
    await resources.__aenter__()
    try:
        yield
    finally:
        await resources.__aexit__(None, None, None)


def _tell_of_death(worker: asyncio.Task[None]) -> None:
    """A service whose worker ended by itself goes on, and its log must say so."""
    if not worker.cancelled() and worker.exception() is not None:
        log.critical("the worker has died, and this process handles no messages any more", exc_info=worker.exception())


def _flow() -> str | None:
    """The correlation id of what is being handled here, if anything is."""
    delivery = current.get()
    return None if delivery is None else delivery.message.correlation_id


async def _despite_cancels(work: Awaitable[None], hurry: Callable[[], None]) -> None:
    """Await `work` to its end; each cancel meanwhile calls `hurry` and is raised when the work is done."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
            hurry()
    task.result()
    if cancelled is not None:
        raise cancelled
