"""An app's tasks: where its tasks and its connections meet."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from carteiro.brokers import DEFAULT
from carteiro.connection import Connection, Connections
from carteiro.engine.reconnect import reconnect_wait
from carteiro.errors import BrokerUnavailable
from carteiro.message import Outgoing
from carteiro.ports.broker import Broker
from carteiro.ports.clock import Clock
from carteiro.ports.store import Store
from carteiro.router import OWN_GROUP, Subscriber
from carteiro.tasks.desk import Desk
from carteiro.tasks.events import happened
from carteiro.tasks.internal import GATHER, UNKNOWN
from carteiro.tasks.queues import LEVELS, Found, found_of, topic_of, waits_group
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
    tasks = [*desk.tasks.values(), GATHER, UNKNOWN]
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


async def follow_found(
    app: str, store: Store, clock: Clock, known: Callable[[], tuple[Iterable[str], Iterable[str]]],
    take_up: Callable[[Found], Awaitable[None]],
) -> None:  # fmt: skip
    """Take up whatever queues and events are found, until it is cancelled. `known` says which there are already."""
    key = found_key(app)
    version = tries = 0
    while True:
        try:
            entry = (await store.changed({key: version}))[key]
            if entry is not None:
                new = found_of(entry.value).besides(*known())
                if new != NOTHING:
                    await take_up(new)
            version, tries = 0 if entry is None else entry.version, 0
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if not isinstance(error, BrokerUnavailable):
                log.exception("cannot take up task queues that were found, trying again")
            await clock.sleep(reconnect_wait(tries))
            tries += 1
