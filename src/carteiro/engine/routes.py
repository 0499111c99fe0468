"""What the engine is given: subscriptions, and the compiled handlers behind them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec

from carteiro.handlers.plan import BatchPlan, Plan
from carteiro.message import Delivery, Message, Native, Outcome, Outgoing, Subscription
from carteiro.policies.batch import Batch
from carteiro.policies.idempotency import Idempotency
from carteiro.policies.rate import Rate
from carteiro.policies.reprocess import Reprocess
from carteiro.policies.retry import Retry

if TYPE_CHECKING:
    from carteiro.engine.endings import Surroundings

ConsumeMiddleware = Callable[[Message, Callable[[Message], Awaitable[Any]]], Awaitable[Any]]
"""`async (message, call_next)`: what it returns is what the handler is taken to have returned."""

PublishMiddleware = Callable[[Outgoing, Callable[[Outgoing], Awaitable[None]]], Awaitable[None]]
"""`async (outgoing, call_next)`: not calling `call_next` drops the message, calling it twice sends two."""


class Publication(msgspec.Struct, frozen=True, eq=False):
    """Where what a handler returns is published; `key` makes its key of it."""

    topic: str
    key: Callable[[Any], str | None] | None = None
    target: Native | None = None
    """What was given in place of a topic's name."""
    broker: str | None = None
    """The name of the broker that it goes to; None leaves the choice to the app."""


class Handler(msgspec.Struct, frozen=True, eq=False):
    """One function behind a subscription, with its policies. `type` selects by message type; None takes any."""

    plan: Plan | BatchPlan
    type: str | None
    publishes: tuple[Publication, ...]
    retry: Retry
    timeout: float | None
    idempotency: Idempotency | None
    middleware: tuple[ConsumeMiddleware, ...]
    attempts: MakeAttempts | None = None
    """What makes its attempts in place of the engine's own: the tasks'."""


MakeAttempts = Callable[[Handler, Subscription, "Surroundings"], Callable[[Delivery], Awaitable[Outcome]]]


class Route(msgspec.Struct, frozen=True, eq=False):
    """One subscription, how it runs, and its handlers. `prefetch=None` adapts to the pace of handling."""

    subscription: Subscription
    handlers: tuple[Handler, ...]
    concurrency: int
    prefetch: int | None
    rate: Rate | None
    batch: Batch | None
    dead_letters: bool = True
    reprocess: Reprocess | None = None
