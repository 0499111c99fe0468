"""The app: what a user declares, and its life from connecting to stopping."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

import msgspec

from carteiro.brokers import DEFAULT, EMBEDDED, Brokers
from carteiro.building import Builder, Defaults, Overrides, check_emits, check_features, needs_store, subscriptions
from carteiro.config.queues import Queues
from carteiro.connection import Connection, Connections, stores
from carteiro.durations import Duration, seconds
from carteiro.engine.crew import Crew
from carteiro.engine.deadlines import Deadlines
from carteiro.engine.endings import Surroundings
from carteiro.engine.idle import IdleCrew
from carteiro.engine.routes import ConsumeMiddleware, PublishMiddleware, Route
from carteiro.engine.worker import Worker
from carteiro.errors import ConfigurationError
from carteiro.handlers.codecs import Codec
from carteiro.handlers.signature import describe
from carteiro.life import Life
from carteiro.message import Retention, Subscription, new_id
from carteiro.policies.breaker import DEFAULT_BREAKER, Breaker
from carteiro.policies.retry import Retry
from carteiro.ports.broker import Backend, Broker
from carteiro.ports.clock import SYSTEM_CLOCK, Clock
from carteiro.ports.registry import open_backend
from carteiro.ports.store import Store
from carteiro.publishing import Publishing
from carteiro.queues import closed, filled, not_consumed
from carteiro.router import Subscriber
from carteiro.schedules.declaring import QUEUE
from carteiro.scheduling import Fires, firing, with_functions
from carteiro.tasking import TaskWork
from carteiro.tasks.attempt import Kept
from carteiro.tasks.queues import topics_of
from carteiro.topics import matches

log = logging.getLogger("carteiro.app")

PM = TypeVar("PM", bound=PublishMiddleware)
CM = TypeVar("CM", bound=ConsumeMiddleware)


class Carteiro(Publishing):
    """One service: its handlers, its brokers, its workers.

    `name` is the default group of its subscribers. `broker` is a URL; by default the environment variable
    CARTEIRO_BROKER, or else the embedded broker in `./carteiro.db`. `brokers` is in its place where there are several:
    URLs by name, `"default"` among them. `retry` and `lease` (the time after which the messages of a worker that says
    nothing go to others) hold for subscribers that have none of their own. `dedupe` is the window in which a message id
    that the publisher chose is taken once. `grace` is how long handlers may go on when the app stops; `publish_timeout`
    how long a publish waits for a broker that is away, which the `breaker` cuts short (None leaves it out); `outbox`
    keeps what is published meanwhile in a file, by default `./NAME-outbox.db`, and forwards it when the broker is back.
    Times are seconds, timedeltas or text such as `"30s"`. `store` is the URL of what keeps state for all handlers, in
    place of the brokers' own stores; a broker that has none uses that of another of the app's, or else the embedded
    one. `codec` is how bodies are written: `"json"` or `"msgpack"`; both are read. `result_ttl` is how long the results
    of tasks are kept, `result_size` how many bytes one may have. `lifespan`, an async context manager
    that takes the app, holds what the handlers need while they run, such as a pool of connections.
    """

    def __init__(
        self,
        name: str,
        broker: str | Backend | None = None,
        *,
        brokers: Mapping[str, str | Backend] | None = None,
        store: str | None = None,
        retry: Retry | None = None,
        lease: Duration = 30.0,
        dedupe: Duration = "2m",
        grace: Duration = 30.0,
        publish_timeout: Duration = 30.0,
        breaker: Breaker | None = DEFAULT_BREAKER,
        outbox: bool | str | os.PathLike[str] = False,
        codec: Codec = "json",
        result_ttl: Duration = "1d",
        result_size: int = 1_048_576,
        middleware: Sequence[ConsumeMiddleware] = (),
        publish_middleware: Sequence[PublishMiddleware] = (),
        lifespan: Callable[[Carteiro], AbstractAsyncContextManager[object]] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if not name or any(letter.isspace() for letter in name):
            raise ConfigurationError(f"an app needs a name without spaces, not {name!r}: it is its default group")
        if codec not in ("json", "msgpack"):
            raise ConfigurationError(f'codec="{codec}": it is "json" or "msgpack"')
        super().__init__(
            name,
            Brokers.of(name, broker, brokers),
            clock=clock,
            codec=codec,
            dedupe=seconds(dedupe),
            lease=seconds(lease),
            connect=self._connect,
        )
        self.overrides: dict[Callable[..., Any], Callable[..., Any]] = {}
        """Dependencies to use in place of others, in tests: `app.overrides[session] = fake_session`."""
        self._store = store
        self._retry = retry or Retry()
        self._lease = seconds(lease)
        self._grace = seconds(grace)
        kept = Kept(seconds(result_ttl), result_size)
        self._task_work = TaskWork(self, self._task_concurrency, kept, self._lease)
        self._publish_timeout = seconds(publish_timeout)
        self._breaker = breaker
        self._outbox: str | None = None
        if outbox:
            self._outbox = f"{quote(name, safe='')}-outbox.db" if outbox is True else os.fspath(outbox)
        self._consume_middleware = list(middleware)
        self._publish_middleware = list(publish_middleware)
        self._resources = lifespan or (lambda app: contextlib.nullcontext())
        self.life = Life(name)
        """Where its work stands."""
        self._users = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening: asyncio.Task[Connections] | None = None
        self._instance = os.getpid(), new_id()
        self._crew: Crew | None = None
        self._stops = 0
        """How often `stop` was called: each run goes by those since it was asked for."""
        self._awaiting_ready: list[asyncio.Future[None]] = []
        self._queues: Queues | None = None
        if self._lease <= 0:
            raise ConfigurationError("lease= must be over 0 seconds")
        if kept.ttl <= 0:
            raise ConfigurationError("result_ttl= must be over 0 seconds: @app.task(result=False) keeps no result")

    @classmethod
    def from_config(cls, path: str | os.PathLike[str], name: str | None = None, **options: Any) -> Self:
        """The app whose queues and brokers a file such as `queues.yaml` names; needs `carteiro[config]`.

        `name` is by default the file's `app:`, or else the file's own name without its suffix. `options` are those of
        the class. What a decorator leaves open the file says. Raises ConfigurationError that lists all that is wrong
        with the file, each with its line and the way out.
        """
        from carteiro.config.loading import load

        queues = load(path)
        app = cls(
            name or queues.app or Path(path).stem, **{"brokers": queues.brokers, "store": queues.store, **options}
        )
        app._queues, app._closed = queues, closed(queues)
        for queue in queues.queues.values():
            if queue.broker != DEFAULT:
                app.topic(queue.name, broker=queue.broker)
        return app

    # -- middleware ------------------------------------------------------------------------------------------------

    def middleware(self, function: CM) -> CM:
        """Wrap the handling of each message: `async (message, call_next)`. The first one installed is the outermost."""
        self._consume_middleware.append(function)
        return function

    def publish_middleware(self, function: PM) -> PM:
        """Wrap the publishing of each message, also of what handlers emit: `async (outgoing, call_next)`."""
        self._publish_middleware.append(function)
        return function

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
            self._connections = await asyncio.shield(self._opening)
        except BaseException:
            await self.__aexit__()
            raise
        self._sync.use(self._connections, loop)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._users -= 1
        if self._users:
            return
        opening, self._opening, self._connections = self._opening, None, None
        self._sync.use(None, None)
        if opening is not None:
            await _despite_cancels(_closed(opening))

    def run(
        self, *, only: Sequence[str] = (), concurrency: int | None = None, schedules: Fires | None = None
    ) -> Coroutine[Any, Any, None]:
        """Handle messages and fire schedules until a cancel or a call of `stop`; a second cancel skips the grace.

        `only` limits it to these groups, topics or task queues; `concurrency` is for subscribers that have none of
        their own. `schedules`: False fires none and runs no function of `@scheduled`, `"only"` does nothing else; by
        default they are fired by a process that is not limited to something else.
        """
        if schedules is None:
            schedules = not only
        # A stop from here on is meant for it, though it has not begun.
        return self._run(only, concurrency, schedules, self._stops)

    async def _run(self, only: Sequence[str], concurrency: int | None, schedules: Fires, stops_before: int) -> None:
        with self.life.working():
            async with self, _always_closed(self._resources(self)):
                builder, crew = await self._build(only, concurrency, schedules)
                try:
                    await builder.start()
                    takes_up = () if schedules == "only" else only
                    async with (
                        self._task_work.growing(takes_up, partial(self._take_up, builder, crew)),
                        firing(self, shared=self._store is not None) if schedules else contextlib.nullcontext(),
                    ):
                        await self._work(crew, stops_before)
                finally:
                    await builder.close()

    async def ready(self) -> None:
        """Return once `run` consumes."""
        if self._crew is None:
            waiter = asyncio.get_running_loop().create_future()
            self._awaiting_ready.append(waiter)
            await waiter

    def stop(self) -> None:
        """Have `run` return, once it has started: what runs gets its grace. A second call skips the grace.

        It is for the `run` that was called before, though its task may not have begun, and never for a later one.
        """
        self._stops += 1
        if self._crew is not None:
            self._crew.request_stop()

    @contextlib.asynccontextmanager
    async def lifespan(
        self, api: object = None, *, workers: bool = True, only: Sequence[str] = (), schedules: Fires | None = None
    ) -> AsyncIterator[None]:
        """For ASGI frameworks: `FastAPI(lifespan=app.lifespan)`. `workers=False` only publishes; `only` and `schedules`
        are `run`'s.
        """
        async with self:
            if not workers:
                yield
                return
            running = asyncio.create_task(self.run(only=only, schedules=schedules), name="carteiro worker")
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
    def queues(self) -> Queues | None:
        """What the file of queues says, if it follows one."""
        return self._queues

    @property
    def worker(self) -> Worker | None:
        """The running worker of the default broker, if there is one."""
        return self.workers.get(DEFAULT)

    @property
    def workers(self) -> Mapping[str, Worker]:
        """The running workers, by the names of the brokers that they consume from; none while nothing runs."""
        return {} if self._crew is None else self._crew.workers

    # -- from what is declared to what runs ------------------------------------------------------------------------

    def declared(self, broker: str = DEFAULT) -> dict[Subscription, list[Subscriber]]:
        """Its subscriptions on one of its brokers, and the subscribers behind each.

        Raises ConfigurationError where those of any cannot be.
        """
        return self._declared()[broker]

    @contextlib.contextmanager
    def on(self, backends: Mapping[str, Backend], *, clock: Clock, overrides: Overrides) -> Iterator[None]:
        """Let it run on other backends, by another clock, with dependencies replaced: for tests."""
        before = self._brokers, self._store, self._outbox, self.clock, self.overrides
        self._brokers, self._store, self._outbox, self.clock = Brokers(backends), None, None, clock
        self.overrides = {**self.overrides, **overrides}
        try:
            yield
        finally:
            self._brokers, self._store, self._outbox, self.clock, self.overrides = before

    def open_backend(self, broker: str = DEFAULT) -> Backend:
        """The backend of one of its brokers, not yet connected."""
        return self._brokers.open(broker, self.clock)

    def open_for_tasks(self) -> tuple[Broker, Store]:
        """The broker by which its tasks go, and the store that knows of them; neither is connected yet."""
        backends = {name: self.open_backend(name) for name in self._brokers}
        given = None if self._store is None else self._open_store(self._store)
        store = stores(backends, given, lambda: self._open_store(EMBEDDED))[DEFAULT]
        assert store is not None
        return backends[DEFAULT].broker, store

    def _declared(self) -> dict[str, dict[Subscription, list[Subscriber]]]:
        """By broker; with the broker of everything said, and what the file of queues says."""
        for function in self._stray_publishers():
            raise ConfigurationError(
                f"{describe(function)} has a `@publisher` and is no subscriber of app `{self.name}`, so that nothing "
                "would be published: put it next to `@subscriber`, with no other decorator between them"
            )
        for topic, broker in self._homes.items():
            self._brokers.check(broker, f"topic(`{topic}`) of app `{self.name}`")
        subscribers: Sequence[Subscriber] = self._publishing()
        if self._queues is not None:
            subscribers = filled(subscribers, self._queues)
        # The file says nothing of tasks: their queues are the code's own.
        placed = [self._placed(subscriber) for subscriber in (*subscribers, *self._task_work.subscribers())]
        defaults = self._defaults(None)
        return {name: subscriptions([one for one in placed if one.broker == name], defaults) for name in self._brokers}

    def _placed(self, subscriber: Subscriber) -> Subscriber:
        home_of = self.home_of if subscriber.consumes else self.broker_of
        try:
            return msgspec.structs.replace(
                subscriber,
                broker=self.broker_of(subscriber.source or subscriber.topic, subscriber.broker),
                publishes=tuple(
                    msgspec.structs.replace(to, broker=home_of(to.target or to.topic, to.broker))
                    for to in subscriber.publishes
                ),
            )
        except ConfigurationError as error:
            raise ConfigurationError(f"{subscriber}: {error}") from error

    def _retained(self) -> dict[str, list[Retention]]:
        """What is kept, by broker."""
        kept: dict[str, list[Retention]] = {name: [] for name in self._brokers}
        for (topic, broker), retention in self._retentions.items():
            kept[self.broker_of(topic, broker)].append(retention)
        return kept

    async def _connect(self) -> Connections:
        declared, retained = self._declared(), self._retained()
        backends = {name: self._brokers.open(name, self.clock) for name in self._brokers}
        check_features(declared, {name: backend.broker.features for name, backend in backends.items()})

        def embedded() -> Store:
            return self._open_store(EMBEDDED)

        def needed() -> Store | None:
            """Opened for those who need it only: a file that nobody uses is not made."""
            return embedded() if needs_store(declared) or self.schedules.declared else None

        given = None if self._store is None else self._open_store(self._store)
        outbox = None
        if self._outbox is not None:
            from carteiro.engine.outbox_file import OutboxFile  # and sqlite3 with it

            outbox = OutboxFile(self._outbox, self.clock)
        connections = Connections(
            {
                name: Connection(
                    name,
                    self._brokers.identity(name),
                    backends[name],
                    store,
                    self._publish_middleware,
                    self.clock,
                    self._publish_timeout,
                    self._breaker,
                    outbox,
                )
                for name, store in stores(backends, given, needed).items()
            },
            embedded,
        )
        durable = {name: [one for one in found if not one.ephemeral] for name, found in declared.items()}
        await connections.open(durable, retained)
        return connections

    def _open_store(self, url: str) -> Store:
        store = open_backend(url, clock=self.clock).store
        if store is None:
            system = url.partition("://")[0]
            raise ConfigurationError(f"store= of app `{self.name}`: {system} keeps no state, as {EMBEDDED} would")
        return store

    async def _build(self, only: Sequence[str], concurrency: int | None, schedules: Fires) -> tuple[Builder, Crew]:
        connections = self._connected()
        brokers = {name: connection.broker for name, connection in connections.items()}
        features = {name: broker.features for name, broker in brokers.items()}
        wanted = topics_of(self.name, self.tasks.queues, only)
        chosen = {name: _only(found, wanted) for name, found in self._declared().items()}
        chosen[DEFAULT] = with_functions(self.name, chosen[DEFAULT], schedules, named=QUEUE in only)
        if not any(chosen.values()) and not (schedules and self.schedules.declared):
            among = f" among {', '.join(only)}" if only else ""
            raise ConfigurationError(f"app `{self.name}` has no subscribers{among}: there is nothing to run")
        if self._queues is not None:
            chosen = self._consumed(chosen, self._queues)
        floor = self._task_work.floor(shared=self._store is not None)
        builder = Builder(self._defaults(concurrency), self.overrides, floor)
        routes: dict[str, list[Route]] = {}
        for name, found in chosen.items():
            if found:
                routes[name] = [builder.route(subscription, sharing) for subscription, sharing in found.items()]
                check_emits(routes[name], features, self.home_of)
        for name in routes:
            await brokers[name].declare([subscription for subscription in chosen[name] if subscription.ephemeral])
        if not routes:
            return builder, IdleCrew()
        return builder, Crew({name: self._worker(name, some) for name, some in routes.items()})

    def _worker(self, broker: str, routes: Sequence[Route]) -> Worker:
        connections = self._connected()
        forward = {name: connection.publisher.forward for name, connection in connections.items()}
        return Worker(broker, connections[broker].broker, routes, self._around(connections[broker]), forward)

    def _consumed(
        self, chosen: Mapping[str, Mapping[Subscription, list[Subscriber]]], queues: Queues
    ) -> dict[str, dict[Subscription, list[Subscriber]]]:
        """Those that the file has this service consume; a service that consumes nothing waits until it is stopped."""
        left = not_consumed(queues)
        if left is not None:
            log.info("%s: %s", self.name, left)
        return {
            name: {subscription: sharing for subscription, sharing in found.items() if sharing[0].consumes}
            for name, found in chosen.items()
        }

    async def _take_up(self, builder: Builder, crew: Crew, found: Sequence[Subscriber]) -> bool:
        """Have one more worker, for what its running found out; False if it is too late."""
        declared = subscriptions([self._placed(subscriber) for subscriber in found], self._defaults(None))
        await self.connection.broker.declare(list(declared))
        routes = [builder.route(subscription, sharing) for subscription, sharing in declared.items()]
        await builder.start()
        if crew.stopping:  # what is added now nobody would stop
            return False
        crew.add(f"{DEFAULT}+{len(crew.workers)}", self._worker(DEFAULT, routes))
        return True

    def _around(self, connection: Connection) -> Surroundings:
        return Surroundings(
            self.clock,
            Deadlines(self.clock),
            self.home_of,
            connection.store,
            connection.publisher.intercept if self._publish_middleware else None,
            self._codec,
        )

    async def _work(self, crew: Crew, stops_before: int) -> None:
        self._crew = crew
        crew.start()
        if self._stops > stops_before:
            crew.request_stop()
        for waiter in self._awaiting_ready:
            if not waiter.done():
                waiter.set_result(None)
        self._awaiting_ready.clear()
        try:
            with self.life.consuming(crew):
                await crew.run_until_stopped()
        finally:
            try:
                await _despite_cancels(crew.stop(self._grace), crew.hurry)
            finally:
                self._crew = None

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


def _only(
    found: Mapping[Subscription, list[Subscriber]], groups_or_topics: Sequence[str]
) -> dict[Subscription, list[Subscriber]]:
    """Those of these groups or topics; all where none are named."""
    return {
        subscription: sharing
        for subscription, sharing in found.items()
        if not groups_or_topics
        or subscription.group in groups_or_topics
        or any(matches(subscription.topic, name) for name in groups_or_topics)
    }


def _tell_of_death(worker: asyncio.Task[None]) -> None:
    """A service whose worker ended by itself goes on, and its log must say so."""
    if not worker.cancelled() and worker.exception() is not None:
        log.critical("the worker has died, and this process handles no messages any more", exc_info=worker.exception())


async def _closed(opening: asyncio.Task[Connections]) -> None:
    """Close what this opens, if it can be opened."""
    await asyncio.wait([opening])
    if not opening.cancelled() and opening.exception() is None:
        await opening.result().close()


async def _despite_cancels(work: Awaitable[None], hurry: Callable[[], None] = lambda: None) -> None:
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
