"""From what a user declared to what the engine runs: subscriptions, compiled plans, pools, routes."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from carteiro.engine.routes import ConsumeMiddleware, Handler, MakeAttempts, Route
from carteiro.errors import ConfigurationError, UnsupportedFeature
from carteiro.handlers.plan import BatchPlan, Plan, compile_batch_plan, compile_plan
from carteiro.handlers.running import CallSync
from carteiro.message import Native, Subscription
from carteiro.policies.retry import Retry
from carteiro.ports.features import Capability, Features
from carteiro.ports.native import check_system
from carteiro.router import OwnGroup, Subscriber
from carteiro.tasks.declaring import RunsIn
from carteiro.topics import is_pattern, wildcard

if TYPE_CHECKING:
    from carteiro.engine.processes import ProcessRunner
    from carteiro.engine.threads import ThreadRunner
    from carteiro.tasks.floor import Floor

Overrides = Mapping[Callable[..., Any], Callable[..., Any]]


class Defaults:
    """What the app decides where a subscriber does not."""

    def __init__(
        self, *, name: str, instance: str, retry: Retry, lease: float, concurrency: int | None,
        middleware: tuple[ConsumeMiddleware, ...],
    ) -> None:  # fmt: skip
        self.name = name
        self.instance = instance
        self.retry = retry
        self.lease = lease
        self.concurrency = concurrency
        self.middleware = middleware


def subscriptions(subscribers: Sequence[Subscriber], defaults: Defaults) -> dict[Subscription, list[Subscriber]]:
    """Each subscription with the subscribers behind it; several only if they differ by type."""
    found: dict[Subscription, list[Subscriber]] = {}
    numbers: dict[Callable[..., Any], int] = {}
    for subscriber in subscribers:
        number = numbers.setdefault(subscriber.function, len(numbers) + 1)
        found.setdefault(_subscription(subscriber, number, defaults), []).append(subscriber)
    for subscription, sharing in found.items():
        _check_sharing(subscription, sharing)
    return found


def check_features(
    declared: Mapping[str, Mapping[Subscription, Sequence[Subscriber]]], features: Mapping[str, Features]
) -> None:
    """Raise UnsupportedFeature for the first thing that a subscriber needs and its broker lacks. Both are by broker."""
    for broker, subscribers in declared.items():
        for subscription, sharing in subscribers.items():
            for subscriber in sharing:
                _check_system(subscriber.source, broker, features, str(subscriber))
                for to in subscriber.publishes:
                    _check_system(to.target, to.broker or broker, features, str(subscriber))
                for capability in _needs(subscription, subscriber):
                    support = features[broker][capability]
                    if not support:
                        raise UnsupportedFeature(
                            f"{subscriber} needs {capability.value}, which the {features[broker].backend} broker does "
                            f"not have" + (f": {support.how}" if support.how else "")
                        )


def needs_store(declared: Mapping[str, Mapping[Subscription, Sequence[Subscriber]]]) -> bool:
    """Whether any subscriber needs state that is kept."""
    return any(
        subscriber.idempotency is not None
        or subscriber.rate is not None
        or subscriber.reprocess is not None
        or subscriber.task is not None
        for subscribers in declared.values()
        for sharing in subscribers.values()
        for subscriber in sharing
    )


def check_emits(
    routes: Sequence[Route], features: Mapping[str, Features], broker_of: Callable[[str | Native, str | None], str]
) -> None:
    """Raise for the first `Emit` that names a broker which is none, or an object that its broker cannot reach."""
    for route in routes:
        for handler in route.handlers:
            for emit in handler.plan.emits_to:
                who = f"the Emit of `{handler.plan.name}` ({handler.plan.place})"
                try:
                    broker = broker_of(emit.to, emit.broker)
                except ConfigurationError as error:
                    raise ConfigurationError(f"{who}: {error}") from error
                _check_system(None if isinstance(emit.to, str) else emit.to, broker, features, who)


def _check_system(native: Native | None, broker: str, features: Mapping[str, Features], who: str) -> None:
    if native is None:
        return
    fit = next((name for name, one in features.items() if one.backend == native.backend), broker)
    if fit != broker and not features[broker].stands_in and features[broker].backend != native.backend:
        raise UnsupportedFeature(
            f"{who} needs {native!r}, which only {native.backend} has, and the broker `{broker}` is "
            f'{features[broker].backend}: say broker="{fit}" beside it'
        )
    check_system(native, features[broker], who)


class Builder:
    """Compiles the routes of one worker, and owns the pools in which its sync handlers run.

    `floor` is what runs the app's tasks, if it has any.
    """

    def __init__(self, defaults: Defaults, overrides: Overrides, floor: Floor | None) -> None:
        self._defaults = defaults
        self._overrides = overrides
        self._floor = floor
        self._pools: dict[tuple[Subscription | None, RunsIn], ThreadRunner | ProcessRunner] = {}
        """By whose it is (None: that of all tasks), and of what kind."""
        self._processes: dict[ProcessRunner, Callable[..., Any]] = {}
        """Those that are not started yet, with a function that each is to have at hand."""
        self._plans: dict[Callable[..., Any], Plan] = {}
        """Those of tasks, which are the same on each queue."""

    def route(self, subscription: Subscription, sharing: Sequence[Subscriber]) -> Route:
        first = sharing[0]
        concurrency = first.concurrency or max(self._concurrency(_runs_in(one), one) for one in sharing)
        return Route(
            subscription=subscription,
            handlers=tuple(self._handler(subscriber, subscription, concurrency) for subscriber in sharing),
            # Of each level of a task queue one more waits for a seat: else a lower one would take what it leaves free.
            concurrency=concurrency if first.task is None else concurrency + 1,
            prefetch=first.prefetch,
            rate=first.rate,
            batch=first.batch,
            dead_letters=first.dead_letters is not False,
            reprocess=first.reprocess,
        )

    async def start(self) -> None:
        """Have what runs in processes ready; raises InvalidHandler for what cannot run there."""
        if self._floor is not None:
            self._floor.bench.start()
        while self._processes:
            runner, function = self._processes.popitem()
            await runner.start(function)

    async def close(self) -> None:
        for pool in self._pools.values():
            await pool.close()
        if self._floor is not None:
            await self._floor.close()

    def _handler(self, subscriber: Subscriber, subscription: Subscription, concurrency: int) -> Handler:
        attempts: MakeAttempts | None = None
        if subscriber.task is not None or subscriber.is_event:
            assert self._floor is not None
            attempts = self._floor.attempts(subscriber.task, concurrency)
        return Handler(
            attempts=attempts,
            plan=self._plan(subscriber, subscription, concurrency),
            type=subscriber.type,
            publishes=subscriber.publishes,
            retry=subscriber.retry or self._defaults.retry,
            timeout=subscriber.timeout,
            idempotency=subscriber.idempotency,
            middleware=(*self._defaults.middleware, *subscriber.middleware),
        )

    def _plan(self, subscriber: Subscriber, subscription: Subscription, concurrency: int) -> Plan | BatchPlan:
        function, task = subscriber.function, subscriber.task
        if task is not None and function in self._plans:
            return self._plans[function]
        call_sync = self._pool(subscription, concurrency, subscriber)
        whole_thread = _runs_in(subscriber) == "thread"
        if subscriber.batch is not None:
            return compile_batch_plan(
                function, topic=subscriber.topic, overrides=self._overrides, call_sync=call_sync,
                whole_thread=whole_thread, localns=subscriber.localns,
            )  # fmt: skip
        plan = compile_plan(
            function, topic=subscriber.topic, overrides=self._overrides, call_sync=call_sync,
            whole_thread=whole_thread, localns=subscriber.localns, by_name=task is not None,
            remote=None if task is None else task.importable,
        )  # fmt: skip
        if task is not None:
            self._plans[function] = plan
        return plan

    def _pool(self, subscription: Subscription, size: int, subscriber: Subscriber) -> CallSync | None:
        """What its sync function runs in; the modules are loaded where they are used.

        A pool is a subscription's own, so that none starves another; tasks, which share their queues, share theirs too.
        """
        runs_in = _runs_in(subscriber)
        if runs_in == "loop":
            return None
        if _is_async(subscriber.function):
            raise ConfigurationError(
                f'{subscriber} is async: it runs on the loop, runs_in="{runs_in}" is for plain functions'
            )
        place = (subscription if subscriber.task is None else None, runs_in)
        if place in self._pools:
            return self._pools[place]
        name = subscriber.name if subscriber.task is None else "tasks"
        if runs_in == "thread":
            from carteiro.engine.threads import ThreadRunner

            self._pools[place] = threads = ThreadRunner(size, name)
            return threads
        from carteiro.engine.processes import ProcessRunner

        if subscriber.task is not None:
            size = min(size, os.cpu_count() or 1)
        self._pools[place] = processes = ProcessRunner(size, name)
        self._processes[processes] = subscriber.function if subscriber.task is None else subscriber.task.importable
        return processes

    def _concurrency(self, runs_in: RunsIn, subscriber: Subscriber) -> int:
        if runs_in == "process":
            return os.cpu_count() or 1
        if self._defaults.concurrency is not None:
            return self._defaults.concurrency
        if subscriber.batch is not None:
            return 1
        return 50 if runs_in == "loop" else 16


def _subscription(subscriber: Subscriber, number: int, defaults: Defaults) -> Subscription:
    """`number` is its function's: a broadcast has a group of its own for each function, also where names are alike."""
    group, source = subscriber.group, subscriber.source
    if isinstance(group, OwnGroup):
        group = defaults.name if source is None else source.default_group(defaults.name)
    broadcast = group is None
    if group is None:
        group = f"{defaults.instance}.{number}.{subscriber.name}"
    subscription = Subscription(
        topic=wildcard(subscriber.topic),
        group=group,
        ordered=subscriber.ordered,
        ephemeral=broadcast,
        lease=subscriber.lease or defaults.lease,
        start=subscriber.start,
        source=source,
    )
    if source is not None:
        try:
            source.check_subscription(subscription)
        except ConfigurationError as error:
            raise type(error)(f"{subscriber}: {error}") from error
    return subscription


_SHARED = (
    "source", "concurrency", "prefetch", "rate", "batch", "ordered", "start", "lease", "dead_letters", "reprocess",
)  # fmt: skip


def _check_sharing(subscription: Subscription, sharing: Sequence[Subscriber]) -> None:
    first = sharing[0]
    types: dict[str | None, Subscriber] = {}
    for subscriber in sharing:
        other = types.setdefault(subscriber.type, subscriber)
        if other is not subscriber:
            raise ConfigurationError(
                f"{other} and {subscriber} are in one group, `{subscription.group}`: which of them is to handle a "
                "message? Give one another group= (each gets every message) or another type="
            )
        for option in _SHARED:
            if getattr(subscriber, option) != getattr(first, option):
                raise ConfigurationError(
                    f"{first} and {subscriber} share one subscription, so {option}= must be the same on both"
                )
    if first.batch is not None and len(sharing) > 1:
        raise ConfigurationError(f"{first}: a batch goes to one handler, which cannot share its subscription by type")
    if first.reprocess is not None and first.dead_letters is False:
        raise ConfigurationError(f"{first} is to reprocess dead letters and keeps none: drop one of the two")


def _needs(subscription: Subscription, subscriber: Subscriber) -> list[Capability]:
    needs = {
        Capability.BROADCAST: subscription.ephemeral,
        Capability.PATTERNS: is_pattern(subscription.topic),
        Capability.ORDERED: subscription.ordered,
        Capability.RETENTION: subscription.start != "latest" and subscription.source is None,
        Capability.DEAD_LETTERS: subscriber.reprocess is not None,
        Capability.INSPECT: subscriber.reprocess is not None,
        Capability.RETRY: subscriber.retry is not None and subscriber.retry.attempts > 1,
    }
    return [capability for capability, needed in needs.items() if needed]


def _runs_in(subscriber: Subscriber) -> RunsIn:
    return subscriber.runs_in or ("loop" if _is_async(subscriber.function) else "thread")


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
