"""An app's schedules: where what they send and the app's connections meet."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeVar

from carteiro.brokers import DEFAULT, EMBEDDED
from carteiro.connection import Connections
from carteiro.durations import seconds
from carteiro.engine.composing import Draft
from carteiro.errors import BrokerUnavailable
from carteiro.message import Outgoing, Subscription
from carteiro.ports.clock import Clock
from carteiro.ports.features import Capability
from carteiro.ports.store import Store
from carteiro.schedules.book import Link
from carteiro.schedules.declaring import QUEUE, Publish
from carteiro.schedules.endings import mark
from carteiro.schedules.firing import WINDOW, Firing, Scheduler
from carteiro.schedules.records import What
from carteiro.tasks.canvas import Canvas, Signature
from carteiro.tasks.desk import START_TASK, Desk
from carteiro.tasks.queues import LEVELS, topic_of
from carteiro.tasks.unique import Unique

if TYPE_CHECKING:
    from carteiro.publishing import Publishing
    from carteiro.router import Subscriber

T = TypeVar("T")

log = logging.getLogger("carteiro.schedules")


class ScheduleLink:
    """The connections by which an app's schedules are kept and sent."""

    def __init__(self, connections: Connections, desk: Desk, clock: Clock) -> None:
        self._connections = connections
        self._desk = desk
        self._clock = clock

    async def store(self) -> Store:
        return self._connections[DEFAULT].store or await self._connections.shared_store()

    async def send(self, firings: Sequence[Firing]) -> Mapping[str, str]:
        """As `firing.Send`: what cannot be sent now, for its broker is away, is logged."""
        now, sent = self._clock.time(), dict[str, str]()
        marks = [
            mark(firing.schedule.definition.what, firing.id, now)
            for firing in firings
            if firing.schedule.definition.overlap != "allow"
        ]
        if marks:
            await (await self.store()).write(marks)
        by_broker: defaultdict[str, list[Outgoing]] = defaultdict(list)
        for firing in firings:
            what = firing.schedule.definition.what
            broker = what.draft.broker or DEFAULT
            # Elsewhere a store would remember ids, and a claim of the dead hold up all of them for a minute.
            remembers = self._connections[broker].broker.features[Capability.DEDUPE]
            message = what.draft.outgoing(firing.id, now, dedupe=WINDOW if remembers else None)
            if what.lock is None:
                by_broker[broker].append(message)
            else:
                sent[firing.id] = await self._desk.send_once(message, what.lock, Unique(window=what.window))
        for broker, messages in by_broker.items():
            try:
                await self._connections[broker].publisher.publish_many(messages)
            except BrokerUnavailable as error:
                log.warning("%d schedules wait for the broker `%s`: %s", len(messages), broker, error)
            else:
                sent |= {message.id: message.id for message in messages}
        return sent


class ScheduleOffice:
    """An app as its schedules see it."""

    def __init__(self, app: Publishing) -> None:
        self._app = app

    @property
    def name(self) -> str:
        return self._app.name

    @property
    def clock(self) -> Clock:
        return self._app.clock

    def what(self, what: Canvas | Publish) -> What:
        if isinstance(what, Publish):
            return What("message", self._draft(what), what.topic)
        draft, lock = self._app.tasks.draft(what)
        label = what.label
        if draft.headers["type"] == START_TASK:
            return What("run", draft, label)
        assert isinstance(what, Signature)
        if lock is None:
            return What("task", draft, label, what.task.name)
        key, unique = lock
        return What(
            "task", draft, label, what.task.name, key, None if unique.window is None else seconds(unique.window)
        )

    def link(self) -> Link:
        return ScheduleLink(self._app.connections, self._app.tasks, self._app.clock)

    def call_sync(self, work: Callable[[Link], Awaitable[T]]) -> T:
        app = self._app
        return app.call_sync(lambda connections: work(ScheduleLink(connections, app.tasks, app.clock)))

    def _draft(self, what: Publish) -> Draft:
        message = self._app.outgoing(
            what.topic, what.value, broker=what.broker, key=what.key, headers=what.headers, type=what.type,
            delay=what.delay,
        )  # fmt: skip
        expires = None if what.expires is None else seconds(what.expires)
        return Draft(
            message.topic, message.body, message.key, dict(message.headers), message.delay, expires, message.broker
        )


Fires = bool | Literal["only"]
"""Whether a process fires schedules; `"only"` does nothing else."""


@contextlib.asynccontextmanager
async def firing(app: Publishing, *, shared: bool) -> AsyncIterator[None]:
    """Fire its schedules meanwhile, where it has any or may get some; the store says by then what the code says.

    On exit what is being fired is fired; a cancel ends that too. `shared` says that the store is one for all of the
    app's machines.
    """
    if app.connection.store is None and not app.schedules.declared:
        yield
        return
    if app.schedules.declared and not shared and not any(one.broker.store for one in app.connections.values()):
        log.warning(
            "%s keeps its schedules in ./%s, for its broker keeps none: processes on several machines need one store "
            "for all, as in store=\"redis://…\", or each machine fires them", app.name, EMBEDDED.partition(":///")[2],
        )  # fmt: skip
    await app.schedules.agree()
    link = ScheduleLink(app.connections, app.tasks, app.clock)
    scheduler = Scheduler(app.name, await link.store(), app.clock, link.send)
    running = asyncio.create_task(scheduler.run(), name="carteiro schedules")
    try:
        yield
    finally:
        scheduler.stop()
        try:
            await asyncio.wait([running])
        finally:
            running.cancel()


def with_functions(
    app: str, chosen: Mapping[Subscription, list[Subscriber]], schedules: Fires, *, named: bool
) -> dict[Subscription, list[Subscriber]]:
    """Of these subscriptions those for a process that fires schedules in this way: the functions that make what is sent
    run there, and where their queue is `named`.
    """
    own = {topic_of(app, QUEUE, level) for level in LEVELS}
    return {
        subscription: sharing
        for subscription, sharing in chosen.items()
        if (bool(schedules) or named if subscription.topic in own else schedules != "only")
    }
