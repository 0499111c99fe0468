"""What a user declares: subscribers, publishers, retained topics, middleware. Nothing runs here."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, TypeVar, Unpack, overload

import msgspec

from carteiro.durations import Duration, seconds
from carteiro.engine.routes import ConsumeMiddleware, Publication
from carteiro.errors import ConfigurationError
from carteiro.handlers.signature import caller_locals
from carteiro.message import Native, Retention
from carteiro.policies.batch import Batch
from carteiro.policies.idempotency import Idempotency
from carteiro.policies.limit import Limit
from carteiro.policies.rate import Rate
from carteiro.policies.reprocess import Reprocess
from carteiro.policies.retry import Retry
from carteiro.ports.native import named
from carteiro.schedules.declaring import FiringOptions, Plan, Publish, Source, Spec, plan, source
from carteiro.tasks.canvas import Canvas, Priority
from carteiro.tasks.declaring import MakeTask, RunsIn, declared
from carteiro.tasks.task import Task
from carteiro.topics import check_pattern, check_topic

if TYPE_CHECKING:
    from carteiro.tasks.unique import Unique

F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")
T = TypeVar("T")

Start = Literal["earliest", "latest"] | datetime


class OwnGroup(msgspec.Struct, frozen=True):
    """The default group: the name of the app that includes the subscriber."""


OWN_GROUP: Final = OwnGroup()


class Subscriber(msgspec.Struct, frozen=True, eq=False):
    """One `@subscriber` on one function, as declared. Times are in seconds; None leaves a choice to the app."""

    function: Callable[..., Any]
    topic: str
    group: str | OwnGroup | None
    type: str | None
    retry: Retry | None
    timeout: float | None
    idempotency: Idempotency | None
    concurrency: int | None
    prefetch: int | None
    rate: Rate | None
    batch: Batch | None
    ordered: bool
    runs_in: RunsIn | None
    start: str | float
    lease: float | None
    middleware: tuple[ConsumeMiddleware, ...]
    publishes: tuple[Publication, ...] = ()
    """Where what it returns goes by the routers that it was included with."""
    localns: Mapping[str, Any] | None = None
    """What its annotations may name, if it is defined within a function."""
    source: Native | None = None
    """What was given in place of a topic's name; `topic` is then its own."""
    broker: str | None = None
    """The name of the broker that it consumes from."""
    dead_letters: bool | None = None
    reprocess: Reprocess | None = None
    consumes: bool = True
    """Whether this service runs it; else its group is declared, and others handle what it gets."""
    task: Task[..., Any, Any] | None = None
    """What it is the handler of, on one topic of a task queue."""
    is_event: bool = False
    """Whether it takes up the tasks that wait for the messages of its topic."""

    @property
    def name(self) -> str:
        return str(getattr(self.function, "__qualname__", self.function))

    @property
    def place(self) -> str:
        """Where its function stands, as `shop.py:31`."""
        code = getattr(self.function, "__code__", None)
        return f"{os.path.basename(code.co_filename)}:{code.co_firstlineno}" if code else "?"

    def __str__(self) -> str:
        return f"subscriber `{self.name}` ({self.place}) of `{self.topic}`"


class Router:
    """Declarations to be included in an app, with a prefix before each of their topics."""

    def __init__(self, *, prefix: str = "", middleware: Sequence[ConsumeMiddleware] = ()) -> None:
        self._prefix = prefix
        self._middleware = tuple(middleware)
        self._subscribers: list[Subscriber] = []
        self._publishers: dict[Callable[..., Any], tuple[Publication, ...]] = {}
        self._homes: dict[str, str] = {}
        """The topics of which it is said on which broker they live, and its name."""
        self._retentions: dict[tuple[str, str | None], Retention] = {}
        """By topic and broker; without a broker, it is for the one on which the topic lives."""
        self._tasks: list[Task[..., Any, Any]] = []
        self._task_concurrency: dict[str, int] = {}
        """By queue."""
        self._plans: list[Plan] = []
        self._sources: list[Source] = []

    def subscriber(
        self,
        topic: str | Native,
        *,
        group: str | OwnGroup | None = OWN_GROUP,
        broker: str | None = None,
        type: str | None = None,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        idempotency: Idempotency | None = None,
        concurrency: int | None = None,
        prefetch: int | None = None,
        rate_limit: str | None = None,
        batch: Batch | None = None,
        ordered: bool = False,
        runs_in: RunsIn | None = None,
        start: Start = "latest",
        retain: Duration | None = None,
        lease: Duration | None = None,
        dead_letters: bool | None = None,
        reprocess: Reprocess | None = None,
        middleware: Sequence[ConsumeMiddleware] = (),
    ) -> Callable[[F], F]:
        """Have the decorated function handle the messages of `topic`: a name, a pattern, or an object of the broker's
        own (`RedisList("jobs")`), which has no prefix before it.

        - `group`: those who share the messages; the app's name by default. None is a broadcast: every running process
          gets its own copy. `type` selects by the message's type. `broker`: the name of one of the app's brokers; by
          default the one on which the topic lives.
        - `retry`: how often and for what a failed message is tried again. `timeout`: how long one attempt may run.
          `idempotency`: do nothing for a second message with the same key.
        - `concurrency`: how many messages one process handles at once. `prefetch`: how many more it holds ready; by
          default as many as its pace warrants. `rate_limit`: `"100/m"`, for the group as a whole.
        - `batch`: many messages in one call. `ordered`: one message of each key at a time, in order.
        - `runs_in`: `"loop"` (the default of async functions), `"thread"` (of others) or `"process"`.
        - `retain`: keep the topic's messages for so long after they were published. `start`: where on a retained topic
          a group that is new begins.
        - `lease`: how long a worker that says nothing keeps a message.
        - `dead_letters`: False drops what fails for good, with an error in the log, instead of keeping it. `reprocess`:
          send dead letters back by themselves after a while, a few times.

        Raises ConfigurationError for what cannot be.
        """
        source = None if isinstance(topic, str) else named(topic)[1]
        full = check_pattern(self._prefix + topic if isinstance(topic, str) else topic.topic)
        for option, given, kind, example in (
            ("retry", retry, Retry, "Retry(attempts=3)"),
            ("batch", batch, Batch, "Batch(size=100)"),
            ("idempotency", idempotency, Idempotency, 'Idempotency(key="order_id")'),
            ("reprocess", reprocess, Reprocess, 'Reprocess(every="10m", limit=3)'),
        ):
            if given is not None and not isinstance(given, kind):
                raise ConfigurationError(f"{option}={given!r} on `{full}`: write {option}={example}")
        for option, value in (("concurrency", concurrency), ("prefetch", prefetch)):
            if value is not None and value < (1 if option == "concurrency" else 0):
                raise ConfigurationError(
                    f"{option}={value} on `{full}`: {'at least 1' if option == 'concurrency' else 'not negative'}"
                )
        if runs_in not in (None, "loop", "thread", "process"):
            raise ConfigurationError(f'runs_in="{runs_in}" on `{full}`: it is "loop", "thread" or "process"')
        for option, length in (("timeout", timeout), ("lease", lease)):
            if length is not None and seconds(length) <= 0:
                raise ConfigurationError(f"{option}={length} on `{full}`: it must be over 0 seconds")
        if batch is not None and idempotency is not None:
            raise ConfigurationError(
                f"`{full}`: a batch cannot have idempotency; handle the messages one by one, or drop it"
            )
        if retain is not None:
            if not isinstance(topic, str):
                raise ConfigurationError(f"retain={retain!r} on {topic!r}: what it keeps is for its own system to say")
            self._retentions[check_topic(full), broker] = Retention(full, seconds(retain))

        def declare(function: F) -> F:
            self._subscribers.append(
                Subscriber(
                    function=function,
                    topic=full,
                    group=group,
                    type=type,
                    retry=retry,
                    timeout=None if timeout is None else seconds(timeout),
                    idempotency=idempotency,
                    concurrency=concurrency,
                    prefetch=prefetch,
                    rate=None if rate_limit is None else Rate.parse(rate_limit),
                    batch=batch,
                    ordered=ordered,
                    runs_in=runs_in,
                    start=_start(start),
                    lease=None if lease is None else seconds(lease),
                    middleware=(*self._middleware, *middleware),
                    localns=caller_locals(function),
                    source=source,
                    broker=broker,
                    dead_letters=dead_letters,
                    reprocess=reprocess,
                )
            )
            return function

        return declare

    def publisher(
        self, topic: str | Native, *, key: Callable[[Any], str | None] | None = None, broker: str | None = None
    ) -> Callable[[F], F]:
        """Publish what the decorated subscriber returns, if it is not None, to `topic`, in one commit with its ack.

        `key` makes the message's key of what was returned. `broker` is the name of one of the app's brokers, by default
        the one on which the topic lives: what goes to another than the message came from is safe there before the ack.
        """
        name, target = named(self._prefix + topic if isinstance(topic, str) else topic)
        to = Publication(name, key, target, broker)

        def declare(function: F) -> F:
            self._publishers[function] = (*self._publishers.get(function, ()), to)
            return function

        return declare

    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> Task[P, Coroutine[Any, Any, T], T]: ...
    @overload
    def task(self, function: Callable[P, T], /) -> Task[P, T, T]: ...
    @overload
    def task(
        self,
        *,
        name: str | None = None,
        queue: str = "default",
        retry: Retry | None = None,
        timeout: Duration | None = None,
        soft_timeout: Duration | None = None,
        rate_limit: str | None = None,
        limit: Limit | None = None,
        result: bool = True,
        result_ttl: Duration | None = None,
        unique: bool | str | Unique = False,
        priority: Priority = "normal",
        expires: Duration | None = None,
        runs_in: RunsIn | None = None,
        waits_for: Sequence[str] = (),
        middleware: Sequence[ConsumeMiddleware] = (),
    ) -> MakeTask: ...

    def task(self, *function: Any, **options: Any) -> Any:
        """Make the decorated function a task: it is still the function it was, and can be called later, by a worker.

        - `name`: the function's own by default; no two tasks of an app have the same. `queue`: where its calls wait,
          shared with other tasks. `priority`: `"high"`, `"normal"` or `"low"` within it.
        - `retry`: as of a subscriber. `timeout`: how long one attempt may run; `soft_timeout`: after which
          `SoftTimeout` is raised within it, so that it can still end in good order (of async functions only).
          `expires`: not begun any more so long after it was sent.
        - `rate_limit`: `"100/m"` starts in the whole cluster. `limit`: `Limit(2, per=lambda a: a.user_id)` runs at most
          two for each user at once.
        - `result`: False keeps nothing, so that nobody can ask after it, wait for it or cancel it. `result_ttl`: how
          long it is kept, by default the app's.
        - `unique`: while one with the same arguments (or this key, or as `Unique(…)` says) waits or runs, another call
          returns its handle.
        - `runs_in`: `"loop"` (the default of async functions), `"thread"` (of others) or `"process"`.
        - `waits_for`: topics of which it waits for events, so that they are heard of before the first call does.

        Raises ConfigurationError for what cannot be.
        """
        if not function:
            return lambda decorated: self._declare_task(decorated, caller_locals(decorated), options)
        (decorated,) = function
        return self._declare_task(decorated, caller_locals(decorated), options)

    def task_queue(self, name: str, *, concurrency: int) -> None:
        """Have workers take up this task queue, and run so many of its tasks at once in each process."""
        if concurrency < 1:
            raise ConfigurationError(f"concurrency={concurrency} of the task queue `{name}`: at least 1")
        self._take_queue(name, concurrency)

    def schedule(
        self,
        name: str,
        spec: Spec,
        what: Canvas | Publish,
        **options: Unpack[FiringOptions],
    ) -> None:
        """Send `what`, a task's call, a canvas or a `Publish`, whenever `spec` says: `cron(…)`, `every(…)`, `at(…)`.

        Each due time is fired once, by whichever process of the app comes first.

        - `misfire`: what of those that are more than a minute late is fired, since nothing ran: `"once"` the latest,
          `"skip"` none, `"all"` each. `max_age`: those older than this never.
        - `overlap`: what if the task or the workflow of the one before is not over: `"allow"` sends all the same,
          `"skip"` leaves this one out, `"queue"` waits until it is over.

        Raises ConfigurationError for what cannot be.
        """
        self._take_plan(_planned_under(self._prefix, plan(name, spec, what, **options)))

    def scheduled(
        self,
        spec: Spec,
        *,
        to: str | None = None,
        name: str | None = None,
        key: Callable[[Any], str | None] | None = None,
        headers: Mapping[str, str] | None = None,
        type: str | None = None,
        delay: Duration | None = None,
        broker: str | None = None,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        **options: Unpack[FiringOptions],
    ) -> Callable[[F], F]:
        """Call the decorated function whenever `spec` says; what it returns, or each thing it yields, is published.

        It is a plain or an async function, or a generator of either kind, with dependencies as a handler has them, and
        runs where schedules are fired. What it makes is published to `to`, if that is given, in one commit with its
        end; None is not.

        - `name`: the schedule's and its task's, by default the function's. `key`: makes the key of each message of what
          it carries. `headers`, `type`, `delay` and `broker` are as of a publish; `retry` and `timeout` as of a task;
          the others as of `schedule`.
        """

        def declare(function: F) -> F:
            made = source(
                function, spec, None if to is None else check_topic(self._prefix + to), localns=caller_locals(function),
                name=name, key=key, headers=headers, type=type, delay=delay, broker=broker, retry=retry,
                timeout=timeout, **options,
            )  # fmt: skip
            self._take_source(msgspec.structs.replace(made, middleware=self._middleware))
            return function

        return declare

    def topic(self, name: str, *, broker: str | None = None, retain: Duration | None = None) -> None:
        """Say of a topic on which broker it lives: there goes, and from there comes, what names it and no broker.

        Its dead letter queue `dlq_<name>` is there too. `retain`: keep its messages for so long after they were
        published; groups can start or go back there.
        """
        full = check_topic(self._prefix + name)
        if broker is None and retain is None:
            raise ConfigurationError(f"topic(`{full}`) says nothing: give broker=, retain= or both")
        if broker is not None:
            self._settle_on(full, broker)
        if retain is not None:
            self._retentions[full, broker] = Retention(full, seconds(retain))

    def include(self, router: Router, *, prefix: str = "") -> None:
        """Take over what `router` declares, each topic with both prefixes before it."""
        before = self._prefix + prefix
        for subscriber in router._publishing():
            self._subscribers.append(
                msgspec.structs.replace(
                    subscriber,
                    topic=check_pattern(before + subscriber.topic) if subscriber.source is None else subscriber.topic,
                    middleware=(*self._middleware, *subscriber.middleware),
                    publishes=_moved(subscriber.publishes, before),
                )
            )
        for function in router._stray_publishers():  # the subscriber of such a one may be here
            moved = _moved(router._publishers[function], before)
            self._publishers[function] = (*self._publishers.get(function, ()), *moved)
        for topic, broker in router._homes.items():
            self._settle_on(before + topic, broker)
        for task in router._tasks:
            self._take_task(task)
        for queue, concurrency in router._task_concurrency.items():
            self._take_queue(queue, concurrency)
        for one in router._plans:
            self._take_plan(_planned_under(before, one))
        for made in router._sources:
            to = None if made.to is None else check_topic(before + made.to)
            self._take_source(msgspec.structs.replace(made, to=to, middleware=(*self._middleware, *made.middleware)))
        for (topic, home), retention in router._retentions.items():
            self._retentions[before + topic, home] = Retention(before + topic, retention.seconds)

    def _declare_task(
        self, function: Callable[..., Any], localns: Mapping[str, Any] | None, options: Mapping[str, Any]
    ) -> Task[..., Any, Any]:
        task = declared(function, localns, self._middleware, **options)
        self._take_task(task)
        return task

    def _take_task(self, task: Task[..., Any, Any]) -> None:
        self._tasks.append(task)

    def _take_queue(self, name: str, concurrency: int) -> None:
        self._task_concurrency[name] = concurrency

    def _take_plan(self, plan: Plan) -> None:
        self._plans.append(plan)

    def _take_source(self, source: Source) -> None:
        self._sources.append(source)

    def _settle_on(self, topic: str, broker: str) -> None:
        if self._homes.setdefault(topic, broker) != broker:
            raise ConfigurationError(
                f"`{topic}` cannot live on the broker `{broker}` and on `{self._homes[topic]}`: say broker= where "
                "another than its own is meant"
            )

    def _publishing(self) -> list[Subscriber]:
        """Its subscribers, with all that their functions publish to: decorators may stand in any order."""
        return [
            msgspec.structs.replace(one, publishes=(*one.publishes, *self._publishers.get(one.function, ())))
            for one in self._subscribers
        ]

    def _stray_publishers(self) -> list[Callable[..., Any]]:
        """Functions with a `@publisher` that are no subscribers here."""
        subscribers = {subscriber.function for subscriber in self._subscribers}
        return [function for function in self._publishers if function not in subscribers]


def _moved(publications: Iterable[Publication], before: str) -> tuple[Publication, ...]:
    return tuple(
        to if to.target is not None else Publication(check_topic(before + to.topic), to.key, None, to.broker)
        for to in publications
    )


def _planned_under(before: str, plan: Plan) -> Plan:
    """With `before` put before the topic of what it publishes."""
    what = plan.what
    if not isinstance(what, Publish):
        return plan
    return msgspec.structs.replace(plan, what=msgspec.structs.replace(what, topic=check_topic(before + what.topic)))


def _start(start: Start) -> str | float:
    if isinstance(start, datetime):
        if start.tzinfo is None:
            raise ConfigurationError(f"start={start!r} has no time zone: give an aware datetime")
        return start.timestamp()
    if start not in ("earliest", "latest"):
        raise ConfigurationError(f'start={start!r}: it is "earliest", "latest" or an aware datetime')
    return start
