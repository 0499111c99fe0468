"""Tests without servers and without waiting: the real engine, an in-memory broker, a clock you hold."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from time import monotonic
from types import TracebackType
from typing import Any, TypeVar, get_args

from carteiro.app import Carteiro
from carteiro.brokers import DEFAULT
from carteiro.durations import Duration, seconds
from carteiro.engine.worker import Worker
from carteiro.errors import ConfigurationError
from carteiro.handlers.codecs import decoder
from carteiro.handlers.markers import TopicMarker
from carteiro.handlers.signature import read_signature
from carteiro.message import DeadLetter, Message, Native, Outgoing
from carteiro.ports.broker import GroupStatus, Inspector
from carteiro.ports.registry import open_backend
from carteiro.tasks.result import TaskResult
from carteiro.tasks.task import Task
from carteiro.testing.clock import VirtualClock
from carteiro.testing.wiretap import Crash, CrashPoint, Wiretap
from carteiro.topics import matches

T = TypeVar("T")

QUIET_TURNS = 10
"""Turns of the event loop without any activity after which nothing more is taken to happen by itself. A worker that was
told to stop, or has just died, needs 4 until its intake shows it, and one of several 7."""


class TestApp:
    """An app under test: `async with TestApp(app) as t`.

    Handlers run as they do in production, on a broker in memory for each of the app's; retries, delays, leases,
    timeouts and rate limits go by a virtual clock that only `advance` and `request` move. `overrides` replaces
    dependencies. `patience` is the real seconds that a handler may be silent (in a thread, in real I/O) before it is
    taken to wait for time to pass.

    On exit the app stops as it always does; its grace passes at once. If the worker has died of an error, the exit
    raises it, and so does all that waits for the worker.
    """

    __test__ = False  # not for pytest to collect

    def __init__(
        self,
        app: Carteiro,
        *,
        overrides: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
        start: datetime | None = None,
        patience: float = 1.0,
    ) -> None:
        self.app = app
        self.clock = VirtualClock() if start is None else VirtualClock(start)
        self._overrides = dict(overrides or {})
        self._patience = patience
        self._published: list[Outgoing] = []
        self._taps = {name: Wiretap(open_backend("memory://", clock=self.clock), self._published) for name in app.urls}
        for tap in self._taps.values():
            tap.on_crash = self._crash
        self._exits = contextlib.AsyncExitStack()
        self._running: asyncio.Task[None] | None = None
        self._dying = False
        self._handles = False
        """Whether it has subscribers, and so workers: another one only fires schedules."""
        self._stuck: tuple[int, int] | None = None
        self.crashes = 0
        """How many times its worker died."""

    async def __aenter__(self) -> TestApp:
        async with contextlib.AsyncExitStack() as exits:
            exits.enter_context(self.app.on(self._taps, clock=self.clock, overrides=self._overrides))
            await exits.enter_async_context(self.app)
            self._handles = any(self.app.declared(broker) for broker in self._taps)
            if self._handles or self.app.schedules.declared:
                self._running = asyncio.create_task(self._run(), name="carteiro test worker")
                exits.push_async_exit(self._stop)
                await self._started(self._running)
            self._exits = exits.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        await self._exits.__aexit__(kind, error, trace)

    # -- doing -----------------------------------------------------------------------------------------------------

    async def publish(self, topic: str | Native, value: Any, **options: Any) -> str:
        """As `app.publish`."""
        return await self.app.publish(topic, value, **options)

    async def publish_many(self, topic: str | Native, values: Iterable[Any], **options: Any) -> list[str]:
        """As `app.publish_many`."""
        return await self.app.publish_many(topic, values, **options)

    async def request(self, topic: str, value: Any, **options: Any) -> Any:
        """As `app.request`; time passes as far as the reply needs it."""
        asked = asyncio.ensure_future(self.app.request(topic, value, **options))
        try:
            await self._pass_time(asked)
            return await asked
        finally:
            asked.cancel()

    async def result(self, handle: TaskResult[T], timeout: Duration | None = None) -> T:
        """As `handle.get`; time passes as far as the result needs it."""
        asked = asyncio.ensure_future(handle.get(timeout))
        try:
            await self._pass_time(asked)
            return await asked
        finally:
            asked.cancel()

    async def idle(self) -> None:
        """Return when nothing is left to do now: what is handled is settled, and the rest waits for its time.

        Raises AssertionError, naming them, if handlers run and do nothing for ten times the patience.
        """
        until = monotonic() + 10 * self._patience
        while not await self._settle_down():
            if monotonic() > until:
                raise AssertionError(f"not idle: {self._what_runs()}. If they wait for time to pass, use advance()")

    async def advance(self, span: Duration | None = None, **units: float) -> None:
        """Let time pass: `advance(hours=24)`, `advance(30)`. What falls due happens in its order, each at its time."""
        until = self.clock.time() + (timedelta(**units).total_seconds() if span is None else seconds(span))
        while True:
            await self._settle_down()
            due = self.clock.next_due()
            if due is None or due > until:
                break
            self.clock.advance_to(due)
        self.clock.advance_to(until)
        await self._settle_down()

    def crash_at(self, handler: Callable[..., Any], point: CrashPoint, *, times: int = 1) -> None:
        """Have the worker die, as by SIGKILL, when next it comes to this point with a message of `handler`, which may
        be a task.

        `"claimed"`: it has fetched and not begun. `"before_ack"`: the handler has ended and nothing is settled.
        `"after_ack"`: it is settled, and nobody knows. Another worker starts at once; leases end when time passes.
        """
        task = handler if isinstance(handler, Task) else None
        found = False
        for broker, tap in self._taps.items():
            behind = frozenset(
                subscription
                for subscription, sharing in self.app.declared(broker).items()
                if any(one.function is handler if task is None else one.task is task for one in sharing)
            )
            if behind:
                found = True
                tap.crashes.append(Crash(point, behind, None if task is None else task.name, times))
        if not found:
            raise ConfigurationError(f"{handler!r} is no subscriber and no task of app `{self.app.name}`")

    # -- looking ---------------------------------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock.time(), UTC)

    def published(self, topic: str | Native) -> list[Any]:
        """What was published to `topic` (a name, a pattern, or an object of a broker's own), by whomever, in order.

        As objects where a publisher, an `Emit` or a subscriber says of what type; otherwise as JSON gives them.
        """
        decode = decoder(self._type_of(_name(topic)))
        return [decode(_as_message(message)) for message in self.messages(topic)]

    def messages(self, topic: str | Native = "#") -> list[Outgoing]:
        """What was published to `topic`, with key, headers, the broker's name and all."""
        name = _name(topic)
        return [message for message in self._published if matches(name, message.topic)]

    def dead(self, topic: str | Native = "#") -> list[DeadLetter]:
        """The dead letters among what was published to `topic`, with reason and history."""
        name = _name(topic)
        return [
            letter
            for broker in self._taps
            for letter in _at_once(self._inspector(broker).dead_letters())
            if matches(name, letter.message.topic)
        ]

    def groups(self, broker: str = DEFAULT) -> dict[tuple[str, str], GroupStatus]:
        """What waits for whom on one of the app's brokers: a status for each (topic, group)."""
        return {(status.topic, status.group): status for status in _at_once(self._inspector(broker).groups())}

    # -- how -------------------------------------------------------------------------------------------------------

    @property
    def _activity(self) -> int:
        return sum(tap.activity for tap in self._taps.values())

    def _inspector(self, broker: str) -> Inspector:
        inner = self._taps[broker].inner.broker
        assert isinstance(inner, Inspector)
        return inner

    async def _run(self) -> None:
        """The worker, and after each one that was killed another."""
        while True:
            try:
                await self.app.run()
                return
            except asyncio.CancelledError:
                if not self._dying or self._running is None or self._running.cancelling():
                    raise
            finally:
                self._dying = False

    async def _started(self, running: asyncio.Task[None]) -> None:
        ready = asyncio.ensure_future(self.app.ready())
        await asyncio.wait((running, ready), return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            running.result()

    def _crash(self) -> None:
        """The process dies: each of its workers, whichever broker it has come to."""
        self.crashes += 1
        self._dying = True
        for worker in self.app.workers.values():
            worker.kill()

    async def _stop(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """End the worker. What it had died of is raised, unless the test failed by itself: then it is noted there."""
        running = self._running
        assert running is not None
        for tap in self._taps.values():
            tap.crashes.clear()  # it is to stop, not to die
        running.cancel()
        await self._pass_time(running)
        died = None if running.cancelled() else running.exception()
        if died is None or died is error:
            return
        if error is None:
            raise died
        error.add_note(f"the worker had died: {died!r}")

    async def _pass_time(self, until: asyncio.Future[Any]) -> None:
        """Let time pass, from one due time to the next, until this is done."""
        while True:
            await self._settle_down(until)
            due = self.clock.next_due()
            if until.done():
                break
            if due is not None:
                self.clock.advance_to(due)
            else:
                await asyncio.sleep(0.001)  # noqa: TID251 (it needs real time)

    async def _settle_down(self, until: asyncio.Future[Any] | None = None) -> bool:
        """Let things run until nothing happens by itself; False if handlers run and may do more in real time.

        A handler that was silent for `patience` is not waited for again until something happens.
        """
        quiet, seen, silent_since = 0, -1, monotonic()
        while until is None or not until.done():
            ended = self._ended()
            await asyncio.sleep(0)  # noqa: TID251 (no time passes)
            activity = self._activity
            # While a worker dies time stands still, or the end of its leases would be missed by the next one.
            if activity != seen or self._dying or any(tap.pending for tap in self._taps.values()):
                quiet, seen, silent_since = 0, activity, monotonic()
                continue
            quiet += 1
            if quiet < QUIET_TURNS:
                continue
            workers = self.app.workers.values()
            running = sum(worker.busy for worker in workers)
            if ended or ((workers or not self._handles) and not running and not any(map(_stopping, workers))):
                return True
            if self._stuck == (running, seen):
                return False
            if monotonic() - silent_since > self._patience:
                self._stuck = (running, seen)
                return False
            await asyncio.sleep(0.001)  # noqa: TID251 (threads, processes and real I/O need real time)
        return True

    def _ended(self) -> bool:
        """Whether there is no worker any more, or none was needed; raises what it died of."""
        running = self._running
        if running is not None and running.done():
            running.result()
        return running is None or running.done()

    def _what_runs(self) -> str:
        workers = self.app.workers.values()
        if not workers:
            return "no worker runs"
        lanes = [lane for worker in workers for lane in worker.lanes.values()]
        held = [f"{delivery.message.id} of {lane}" for lane in lanes for delivery in lane.held]
        return "still being handled are " + ", ".join(held[:5])

    def _type_of(self, topic: str) -> Any:
        """What the values on `topic` are, as far as the app's functions say."""
        declared = [self.app.declared(broker) for broker in self._taps]
        for sharing in (sharing for found in declared for sharing in found.values()):
            for subscriber in sharing:
                signature = read_signature(subscriber.function, str(subscriber), localns=subscriber.localns)
                if any(to.topic == topic for to in subscriber.publishes):
                    return signature.returns
                for parameter in signature.parameters:
                    if isinstance(parameter.marker, TopicMarker) and _name(parameter.marker.to) == topic:
                        emitted = (get_args(parameter.annotation) or (Any,))[0]
                        if emitted is not Any:  # it then knows less than a subscriber may
                            return emitted
        for route in (route for worker in self.app.workers.values() for route in worker.routes):
            if matches(route.subscription.topic, topic) and route.handlers[0].plan.body_type is not None:
                return route.handlers[0].plan.body_type
        return Any


def _name(topic: str | Native) -> str:
    return topic if isinstance(topic, str) else topic.topic


def _stopping(worker: Worker) -> bool:
    return any(lane.stopping for lane in worker.lanes.values())


def _as_message(message: Outgoing) -> Message:
    return Message(message.id, message.topic, message.body, message.key, message.headers, message.correlation_id, 0.0)


def _at_once(call: Coroutine[Any, Any, T]) -> T:
    """The result of a call to the memory broker, none of which ever waits."""
    try:
        call.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise RuntimeError("the memory broker waited")
