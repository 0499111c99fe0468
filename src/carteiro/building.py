"""From what a user declared to what the engine runs: subscriptions, compiled plans, pools, routes."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from carteiro.engine.processes import ProcessRunner
from carteiro.engine.routes import ConsumeMiddleware, Handler, Route
from carteiro.engine.threads import ThreadRunner
from carteiro.errors import ConfigurationError, UnsupportedFeature
from carteiro.handlers.plan import BatchPlan, Plan, compile_batch_plan, compile_plan
from carteiro.message import Subscription
from carteiro.policies.retry import Retry
from carteiro.ports.features import Capability, Features
from carteiro.router import OwnGroup, RunsIn, Subscriber
from carteiro.topics import is_pattern, wildcard

Overrides = Mapping[Callable[..., Any], Callable[..., Any]]
Runner = ThreadRunner | ProcessRunner


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
    for subscriber in subscribers:
        found.setdefault(_subscription(subscriber, defaults), []).append(subscriber)
    for subscription, sharing in found.items():
        _check_sharing(subscription, sharing)
    return found


def check_features(subscribers: Mapping[Subscription, Sequence[Subscriber]], features: Features) -> None:
    """Raise UnsupportedFeature for the first thing that a subscriber needs and the broker lacks."""
    for subscription, sharing in subscribers.items():
        for subscriber in sharing:
            for capability in _needs(subscription, subscriber):
                support = features[capability]
                if not support:
                    raise UnsupportedFeature(
                        f"{subscriber} needs {capability.value}, which the {features.backend} broker does not have"
                        + (f": {support.how}" if support.how else "")
                    )


class Builder:
    """Compiles the routes of one worker, and owns the pools in which its sync handlers run."""

    def __init__(
        self, publishers: Mapping[Callable[..., Any], tuple[str, ...]], defaults: Defaults, overrides: Overrides
    ) -> None:
        self._publishers = publishers
        self._defaults = defaults
        self._overrides = overrides
        self._runners: list[Runner] = []

    def route(self, subscription: Subscription, sharing: Sequence[Subscriber]) -> Route:
        first = sharing[0]
        runs_in = first.runs_in or _natural(first.function)
        concurrency = first.concurrency or self._concurrency(runs_in, first)
        runner = self._runner(runs_in, concurrency, first)
        return Route(
            subscription=subscription,
            handlers=tuple(self._handler(subscriber, runner) for subscriber in sharing),
            concurrency=concurrency,
            prefetch=first.prefetch,
            rate=first.rate,
            batch=first.batch,
        )

    async def close(self) -> None:
        for runner in self._runners:
            await runner.close()

    def _handler(self, subscriber: Subscriber, runner: Runner | None) -> Handler:
        plan: Plan | BatchPlan
        compiled = compile_plan if subscriber.batch is None else compile_batch_plan
        plan = compiled(
            subscriber.function,
            topic=subscriber.topic,
            overrides=self._overrides,
            call_sync=runner,
            whole_thread=isinstance(runner, ThreadRunner),
            localns=subscriber.localns,
        )
        return Handler(
            plan=plan,
            type=subscriber.type,
            publishes=self._publishers.get(subscriber.function, ()),
            retry=subscriber.retry or self._defaults.retry,
            timeout=subscriber.timeout,
            idempotency=subscriber.idempotency,
            middleware=(*self._defaults.middleware, *subscriber.middleware),
        )

    def _runner(self, runs_in: RunsIn, size: int, subscriber: Subscriber) -> Runner | None:
        if runs_in == "loop":
            return None
        if _is_async(subscriber.function):
            raise ConfigurationError(
                f'{subscriber} is async: it runs on the loop, runs_in="{runs_in}" is for plain functions'
            )
        runner: Runner = (ThreadRunner if runs_in == "thread" else ProcessRunner)(size, subscriber.name)
        self._runners.append(runner)
        return runner

    def _concurrency(self, runs_in: RunsIn, subscriber: Subscriber) -> int:
        if runs_in == "process":
            return os.cpu_count() or 1
        if self._defaults.concurrency is not None:
            return self._defaults.concurrency
        if subscriber.batch is not None:
            return 1
        return 50 if runs_in == "loop" else 16


def _subscription(subscriber: Subscriber, defaults: Defaults) -> Subscription:
    group = subscriber.group
    if isinstance(group, OwnGroup):
        group = defaults.name
    broadcast = group is None
    if group is None:
        group = f"{defaults.instance}.{subscriber.name}"
    return Subscription(
        topic=wildcard(subscriber.topic),
        group=group,
        ordered=subscriber.ordered,
        ephemeral=broadcast,
        lease=subscriber.lease or defaults.lease,
        start=subscriber.start,
    )


_SHARED = ("concurrency", "prefetch", "rate", "batch", "ordered", "runs_in", "start", "lease")


def _check_sharing(subscription: Subscription, sharing: Sequence[Subscriber]) -> None:
    first = sharing[0]
    types: dict[str | None, Subscriber] = {}
    for subscriber in sharing:
        other = types.setdefault(subscriber.type, subscriber)
        if other is not subscriber:
            raise ConfigurationError(
                f"{other} and {subscriber} are in one group, `{subscription.group}`: which of them is to handle a "
                "message? "
                "Give one another group= (each gets every message) or another type="
            )
        for option in _SHARED:
            if getattr(subscriber, option) != getattr(first, option):
                raise ConfigurationError(
                    f"{first} and {subscriber} share one subscription, so {option}= must be the same on both"
                )
    if first.batch is not None and len(sharing) > 1:
        raise ConfigurationError(f"{first}: a batch goes to one handler, which cannot share its subscription by type")


def _needs(subscription: Subscription, subscriber: Subscriber) -> list[Capability]:
    needs = {
        Capability.BROADCAST: subscription.ephemeral,
        Capability.PATTERNS: is_pattern(subscription.topic),
        Capability.ORDERED: subscription.ordered,
        Capability.RETENTION: subscription.start != "latest",
        Capability.RETRY: subscriber.retry is not None and subscriber.retry.attempts > 1,
    }
    return [capability for capability, needed in needs.items() if needed]


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _natural(function: Callable[..., Any]) -> RunsIn:
    return "loop" if _is_async(function) else "thread"
