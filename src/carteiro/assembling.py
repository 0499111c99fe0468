"""From what is declared to what runs: an app's subscriptions, its connections, its workers."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from carteiro.brokers import DEFAULT, EMBEDDED, Brokers
from carteiro.building import Builder, Defaults, Overrides, check_emits, check_features, needs_store, subscriptions
from carteiro.config.queues import Queues
from carteiro.connection import Connection, Connections, stores
from carteiro.engine.crew import Crew
from carteiro.engine.deadlines import Deadlines
from carteiro.engine.endings import Surroundings
from carteiro.engine.idle import IdleCrew
from carteiro.engine.routes import ConsumeMiddleware, PublishMiddleware, Route
from carteiro.engine.worker import Worker
from carteiro.errors import ConfigurationError
from carteiro.handlers.codecs import Codec
from carteiro.handlers.signature import describe
from carteiro.message import Retention, Subscription, new_id
from carteiro.policies.breaker import Breaker
from carteiro.policies.retry import Retry
from carteiro.ports.broker import Backend, Broker
from carteiro.ports.clock import Clock
from carteiro.ports.registry import open_backend
from carteiro.ports.store import Store
from carteiro.publishing import Publishing
from carteiro.queues import filled, not_consumed
from carteiro.router import Subscriber
from carteiro.schedules.declaring import QUEUE
from carteiro.scheduling import Fires, with_functions
from carteiro.tasking import TaskWork
from carteiro.tasks.attempt import Kept
from carteiro.tasks.queues import topics_of
from carteiro.topics import matches

log = logging.getLogger("carteiro.app")


class Settings(msgspec.Struct, frozen=True):
    """The options of an app that say how it connects and works. Times are in seconds; `outbox` is a path."""

    store: str | None
    retry: Retry
    lease: float
    dedupe: float
    publish_timeout: float
    breaker: Breaker | None
    outbox: str | None
    codec: Codec
    results: Kept
    consume_middleware: list[ConsumeMiddleware]
    publish_middleware: list[PublishMiddleware]


class Assembling(Publishing):
    """An app as it is put together to be connected, and to work."""

    def __init__(self, name: str, brokers: Brokers, settings: Settings, clock: Clock) -> None:
        super().__init__(
            name,
            brokers,
            clock=clock,
            codec=settings.codec,
            dedupe=settings.dedupe,
            lease=settings.lease,
            connect=self._connect,
        )
        self.overrides: dict[Callable[..., Any], Callable[..., Any]] = {}
        """Dependencies to use in place of others, in tests: `app.overrides[session] = fake_session`."""
        self._settings = settings
        self._task_work = TaskWork(self, self._task_concurrency, settings.results, settings.lease)
        self._instance = os.getpid(), new_id()
        self._queues: Queues | None = None

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

    def declared(self, broker: str = DEFAULT) -> dict[Subscription, list[Subscriber]]:
        """Its subscriptions on one of its brokers, and the subscribers behind each.

        Raises ConfigurationError where those of any cannot be.
        """
        return self._declared()[broker]

    @contextlib.contextmanager
    def on(self, backends: Mapping[str, Backend], *, clock: Clock, overrides: Overrides) -> Iterator[None]:
        """Let it run on other backends, by another clock, with dependencies replaced: for tests."""
        before = self._brokers, self._settings, self.clock, self.overrides
        self._brokers, self.clock = Brokers(backends), clock
        self._settings = msgspec.structs.replace(self._settings, store=None, outbox=None)
        self.overrides = {**self.overrides, **overrides}
        try:
            yield
        finally:
            self._brokers, self._settings, self.clock, self.overrides = before

    def open_backend(self, broker: str = DEFAULT) -> Backend:
        """The backend of one of its brokers, not yet connected."""
        return self._brokers.open(broker, self.clock)

    def open_for_tasks(self) -> tuple[Broker, Store]:
        """The broker by which its tasks go, and the store that knows of them; neither is connected yet."""
        backends = {name: self.open_backend(name) for name in self._brokers}
        given = None if self._settings.store is None else self._open_store(self._settings.store)
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

        given = None if self._settings.store is None else self._open_store(self._settings.store)
        outbox = None
        if self._settings.outbox is not None:
            from carteiro.engine.outbox_file import OutboxFile  # and sqlite3 with it

            outbox = OutboxFile(self._settings.outbox, self.clock)
        connections = Connections(
            {
                name: Connection(
                    name,
                    self._brokers.identity(name),
                    backends[name],
                    store,
                    self._settings.publish_middleware,
                    self.clock,
                    self._settings.publish_timeout,
                    self._settings.breaker,
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
        if not any(chosen.values()) and not (schedules and self.schedules.declared) and schedules != "only":
            among = f" among {', '.join(only)}" if only else ""
            raise ConfigurationError(f"app `{self.name}` has no subscribers{among}: there is nothing to run")
        if self._queues is not None:
            chosen = self._consumed(chosen, self._queues)
        floor = self._task_work.floor(shared=self._settings.store is not None)
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
            connection.publisher.intercept if self._settings.publish_middleware else None,
            self._settings.codec,
        )

    def _defaults(self, concurrency: int | None) -> Defaults:
        return Defaults(
            name=self.name,
            instance=self.instance,
            retry=self._settings.retry,
            lease=self._settings.lease,
            concurrency=concurrency,
            middleware=tuple(self._settings.consume_middleware),
        )


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
