"""An app's tasks: where its tasks and its connections meet."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from carteiro.brokers import DEFAULT, EMBEDDED
from carteiro.connection import Connection, Connections
from carteiro.engine.reconnect import reconnect_wait
from carteiro.errors import BrokerUnavailable
from carteiro.message import Outgoing, Subscription
from carteiro.ports.broker import Broker
from carteiro.ports.clock import Clock
from carteiro.ports.store import Store
from carteiro.router import OWN_GROUP, Subscriber
from carteiro.tasks.attempt import Kept
from carteiro.tasks.bench import Bench
from carteiro.tasks.desk import Desk
from carteiro.tasks.events import happened
from carteiro.tasks.floor import Floor
from carteiro.tasks.internal import GATHER, UNKNOWN
from carteiro.tasks.queues import LEVELS, Found, found_of, topic_of, waits_group, write_down
from carteiro.tasks.records import found_key
from carteiro.tasks.task import Task

if TYPE_CHECKING:
    from carteiro.publishing import Publishing

T = TypeVar("T")

log = logging.getLogger("carteiro.tasks")

NOTHING: Final = Found()


class TaskLink:
    """The connection by which tasks go: the default broker's."""

    def __init__(self, connections: Connections) -> None:
        self._connection: Connection = connections[DEFAULT]

    @property
    def broker(self) -> Broker:
        return self._connection.broker

    @property
    def store(self) -> Store | None:
        return self._connection.store

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        if len(messages) == 1:
            await self._connection.publisher.publish(messages[0])
        else:
            await self._connection.publisher.publish_many(messages)


class TaskOffice:
    """An app as its tasks see it."""

    def __init__(self, app: Publishing, *, dedupe: float, lease: float) -> None:
        self._app = app
        self.dedupe_window = dedupe
        self.task_lease = lease

    @property
    def name(self) -> str:
        return self._app.name

    @property
    def clock(self) -> Clock:
        return self._app.clock

    def home_of(self, topic: str) -> str:
        return DEFAULT

    def link(self) -> TaskLink:
        return TaskLink(self._app.connections)

    def call_sync(self, work: Callable[[TaskLink], Awaitable[T]]) -> T:
        return self._app.call_sync(lambda connections: work(TaskLink(connections)))


def subscribers_of(
    app: str, desk: Desk, concurrency: Mapping[str, int], found: Found = NOTHING, *, declared: bool = True
) -> list[Subscriber]:
    """What handles the tasks of an app: on the queues, and for the events, that its code names or that were found.

    `concurrency` is by queue. Without `declared` it is for those that were found alone.
    """
    if not desk.tasks:
        return []
    tasks = [*desk.tasks.values(), GATHER, UNKNOWN, desk.starter]
    queues = dict.fromkeys([*(desk.queues if declared else ()), *found.queues])
    events = dict.fromkeys([*(event for task in tasks for event in task.options.waits_for if declared), *found.events])
    return [
        *(
            _subscriber(task, topic_of(app, queue, level), concurrency.get(queue))
            for queue in queues
            for level in LEVELS
            for task in tasks
        ),
        *(_event_subscriber(app, event) for event in events),
    ]


def _subscriber(task: Task[..., Any, Any], topic: str, concurrency: int | None) -> Subscriber:
    options = task.options
    return Subscriber(
        function=task.function,
        topic=topic,
        group=OWN_GROUP,
        type=task.name or None,
        retry=options.retry,
        timeout=options.timeout,
        idempotency=None,
        concurrency=concurrency,
        prefetch=None,
        rate=None,
        batch=None,
        ordered=False,
        runs_in=options.runs_in,
        start="latest",
        lease=None,
        middleware=options.middleware,
        localns=task.localns,
        broker=DEFAULT,
        task=task,
    )


def _event_subscriber(app: str, topic: str) -> Subscriber:
    return Subscriber(
        function=happened,
        topic=topic,
        group=waits_group(app),
        type=None,
        retry=None,
        timeout=None,
        idempotency=None,
        concurrency=None,
        prefetch=None,
        rate=None,
        batch=None,
        ordered=False,
        runs_in=None,
        start="latest",
        lease=None,
        middleware=(),
        broker=DEFAULT,
        is_event=True,
    )


class TaskWork:
    """An app's tasks at work in this process: what runs them, and the queues and events that are found meanwhile.

    `concurrency` is by queue; `lease` is in seconds.
    """

    def __init__(self, app: Publishing, concurrency: Mapping[str, int], kept: Kept, lease: float) -> None:
        self._app = app
        self._concurrency = concurrency
        self._kept = kept
        self._lease = lease
        self._found = NOTHING
        """What its workers have taken up, and its code does not name."""

    def subscribers(self) -> list[Subscriber]:
        """What handles its tasks, and the events that these wait for."""
        return subscribers_of(self._app.name, self._app.tasks, self._concurrency, self._found)

    def floor(self, *, shared: bool) -> Floor | None:
        """What runs the tasks, if there are any. `shared` says that the store is one for all the app's machines."""
        app = self._app
        if not app.tasks.tasks:
            return None
        connection = app.connection
        assert connection.store is not None
        apart = connection.store is not connection.broker.store
        if not shared and not any(one.broker.store for one in app.connections.values()):
            log.warning(
                "%s keeps its tasks' results in ./%s, for its broker keeps none: workers on several machines need one "
                "store for all, as in store=\"redis://…\"", app.name, EMBEDDED.partition(":///")[2],
            )  # fmt: skip
        worker = f"{socket.gethostname()}:{os.getpid()}"
        bench = Bench(app.name, connection.store, app.clock, worker, apart=apart, listen=self._listen)
        return Floor(app.name, bench, self._kept, self._lease)

    @contextlib.asynccontextmanager
    async def growing(
        self, only: Sequence[str], take_up: Callable[[Sequence[Subscriber]], Awaitable[bool]]
    ) -> AsyncIterator[None]:
        """Take up the queues and events that are found meanwhile; a worker for some queues only, the events.

        `take_up` has these handled, or says False.
        """
        app = self._app
        store = app.connection.store
        if not app.tasks.tasks or (only and app.tasks.queues.isdisjoint(only)) or store is None:
            yield
            return
        following = asyncio.create_task(self._follow(store, bool(only), take_up), name="carteiro task queues")
        try:
            yield
        finally:
            following.cancel()
            await asyncio.wait([following])

    async def _follow(
        self, store: Store, only_events: bool, take_up: Callable[[Sequence[Subscriber]], Awaitable[bool]]
    ) -> None:
        """Take up whatever is found, until it is cancelled."""
        app = self._app
        key = found_key(app.name)
        version = tries = 0
        while True:
            try:
                entry = (await store.changed({key: version}))[key]
                new = NOTHING if entry is None else found_of(entry.value).besides(*self._known())
                if only_events:
                    new = Found((), new.events)
                found = subscribers_of(app.name, app.tasks, self._concurrency, new, declared=False)
                if found and await take_up(found):
                    self._found = Found((*self._found.queues, *new.queues), (*self._found.events, *new.events))
                    log.info("%s takes up %s", app.name, ", ".join((*new.queues, *new.events)))
                version, tries = 0 if entry is None else entry.version, 0
            except asyncio.CancelledError:
                raise
            except Exception as error:
                if not isinstance(error, BrokerUnavailable):
                    log.exception("cannot take up task queues that were found, trying again")
                await app.clock.sleep(reconnect_wait(tries))
                tries += 1

    async def _listen(self, topic: str) -> None:
        """Hear of the events of a topic that a task waits for."""
        _, events = self._known()
        connection = self._app.connection
        if topic not in events and connection.store is not None:
            group = waits_group(self._app.name)
            await connection.broker.declare([Subscription(topic, group, lease=self._lease)])
            await write_down(connection.store, self._app.name, event=topic)

    def _known(self) -> tuple[set[str], set[str]]:
        """The queues and the events that its workers take up already."""
        tasks = self._app.tasks
        events = (event for task in tasks.tasks.values() for event in task.options.waits_for)
        return {*tasks.queues, *self._found.queues}, {*events, *self._found.events}
