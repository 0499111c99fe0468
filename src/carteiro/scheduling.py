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
from carteiro.errors import BrokerUnavailable, ConfigurationError
from carteiro.message import Outgoing, Subscription
from carteiro.ports.clock import Clock, within
from carteiro.ports.features import Capability
from carteiro.ports.store import Store
from carteiro.schedules.book import Link
from carteiro.schedules.declaring import QUEUE, Publish
from carteiro.schedules.endings import mark
from carteiro.schedules.firing import LEASE, WINDOW, Scheduler
from carteiro.schedules.moves import Firing
from carteiro.schedules.records import What
from carteiro.tasks.canvas import Canvas, Signature
from carteiro.tasks.desk import START_TASK, Desk
from carteiro.tasks.queues import LEVELS, topic_of
from carteiro.tasks.records import run_key
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
        """As `firing.Send`: what cannot be sent now is logged, and keeps nothing else from being sent."""
        now = self._clock.time()
        await self._mark([one for one in firings if one.schedule.definition.overlap != "allow"], now)
        by_broker: defaultdict[str, list[Firing]] = defaultdict(list)
        for firing in firings:
            by_broker[firing.schedule.definition.what.draft.broker or DEFAULT].append(firing)
        sent = await asyncio.gather(*(self._send_to(broker, some, now) for broker, some in by_broker.items()))
        return {id: what for some in sent for id, what in some.items()}

    async def _mark(self, firings: Sequence[Firing], now: float) -> None:
        """Say that these are not over, before they can be. A run that has begun by then says so itself."""
        if firings:
            store = await self.store()
            begun = await store.get([run_key(firing.id) for firing in firings])
            left = [firing for firing in firings if run_key(firing.id) not in begun]
            await store.write([mark(firing.schedule.definition.what, firing.id, now) for firing in left])

    async def _send_to(self, broker: str, firings: Sequence[Firing], now: float) -> Mapping[str, str]:
        try:
            # For no longer than its claims hold: what waits for a broker that is away others would send beside it.
            sent = await within(self._sent(broker, firings, now), self._clock, LEASE)
            if sent is None:
                log.warning("%d firings wait for the broker `%s`: it does not answer", len(firings), broker)
            return sent or {}
        except BrokerUnavailable as error:
            log.warning("%d firings wait for the broker `%s`: %s", len(firings), broker, error)
            return {}
        except Exception as error:
            if len(firings) == 1:
                log.error("schedule `%s` cannot be sent, and is tried again: %r", firings[0].schedule.name, error)
                return {}
        each = [await self._send_to(broker, [firing], now) for firing in firings]  # one of them cannot: the others can
        return {id: what for some in each for id, what in some.items()}

    async def _sent(self, broker: str, firings: Sequence[Firing], now: float) -> Mapping[str, str]:
        if broker not in self._connections:
            raise ConfigurationError(f"the app has no broker `{broker}`")
        connection = self._connections[broker]
        # Elsewhere a store would remember ids, and a claim of the dead hold up all of them for a minute.
        window = WINDOW if connection.broker.features[Capability.DEDUPE] else None
        sent, messages = dict[str, str](), list[Outgoing]()
        for firing in firings:
            what = firing.schedule.definition.what
            message = what.draft.outgoing(firing.id, now, dedupe=window)
            if what.kind != "message":
                await self._desk.know(message.topic)
            if what.lock is None:
                messages.append(message)
            else:
                sent[firing.id] = await self._desk.send_once(message, what.lock, Unique(window=what.window))
        if messages:
            await connection.publisher.publish_many(messages, patience=LEASE / 2)
        return sent | {message.id: message.id for message in messages}


class ScheduleOffice:
    """An app as its schedules see it."""

    def __init__(self, app: Publishing, link: Link | None = None) -> None:
        """`link` is in place of the app's own connections."""
        self._app = app
        self._link = link

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
        return self._link or ScheduleLink(self._app.connections, self._app.tasks, self._app.clock)

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


def fires(app: Publishing, schedules: Fires) -> bool:
    """Whether there is anything to fire, or may be. Who does nothing else waits for what others may add."""
    return schedules == "only" or (schedules and (app.connection.store is not None or bool(app.schedules.declared)))


@contextlib.asynccontextmanager
async def firing(app: Publishing, *, shared: bool) -> AsyncIterator[None]:
    """Fire its schedules meanwhile; the store says by then what the code says.

    On exit what is being fired is fired; a cancel ends that too. `shared` says that the store is one for all of the
    app's machines.
    """
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
