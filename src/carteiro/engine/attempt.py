"""One attempt: from a delivery to its outcome.

What the policies ask for is put together once, when the worker starts: a handler without a timeout, middleware,
publishers or idempotency has none of their steps on its way.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from carteiro.engine.endings import Endings, Surroundings
from carteiro.engine.failures import after_failure, lost_with_worker
from carteiro.engine.isolation import isolated
from carteiro.engine.routes import ConsumeMiddleware, Handler
from carteiro.errors import BrokerUnavailable, ConfigurationError, NoHandler
from carteiro.handlers.plan import Plan
from carteiro.message import REPLY_TO, TYPE, Action, Delivery, Message, Outcome, Subscription, Write
from carteiro.policies.idempotency import Marks, Standing
from carteiro.policies.retry import NO_RETRY

log = logging.getLogger("carteiro.worker")

Handle = Callable[[Delivery], Awaitable[Outcome]]

STEP_BACK = 0.5
"""Seconds after which a message is looked at again whose idempotency key another one holds."""


class Attempt:
    """The attempts of one handler behind one subscription."""

    def __init__(self, handler: Handler, subscription: Subscription, around: Surroundings) -> None:
        plan = handler.plan
        assert isinstance(plan, Plan)
        self._around = around
        self._endings = Endings(handler, subscription, around)
        self._silent = self._endings.silent
        self._blocked = self._endings.blocked
        self._attempts = handler.retry.attempts
        self._timeout = handler.timeout
        self._marks = self._marks_of(handler, subscription)
        self._invoke: Callable[[Message], Any] = with_middleware(plan.call, handler.middleware)

    async def __call__(self, delivery: Delivery) -> Outcome:
        message = delivery.message
        if message.attempt > self._attempts:
            return lost_with_worker(delivery, self._around.clock.time())
        headers = message.headers
        if headers and self._around.expired(headers):
            return Outcome(delivery, Action.ACK)
        if self._marks is not None:
            return await self._once(delivery, self._marks)
        return await self._attempt(delivery)

    async def _attempt(self, delivery: Delivery) -> Outcome:
        message = delivery.message
        try:
            call = isolated(self._invoke(message), self._blocked)
            result = await (call if self._timeout is None else self._around.deadlines.limit(call, self._timeout))
            if self._silent and REPLY_TO not in message.headers:
                return Outcome(delivery, Action.ACK)
            return Outcome(delivery, Action.ACK, emits=await self._endings.published(message, result))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return self._endings.failed(delivery, error)

    async def _once(self, delivery: Delivery, marks: Marks) -> Outcome:
        message = delivery.message
        try:
            key = marks.key_of(message)
            standing = await marks.claim(key, message)
        except BrokerUnavailable as error:
            log.warning("%s waits for the store: %s", self._endings.name, error)
            return Outcome(delivery, Action.RELEASE, delay=STEP_BACK)
        except Exception as error:
            return self._endings.failed(delivery, error)
        if standing is Standing.DONE:
            return Outcome(delivery, Action.ACK)
        if standing is Standing.TAKEN:
            return Outcome(delivery, Action.RELEASE, delay=STEP_BACK)
        outcome = await self._attempt(delivery)
        write: Write = marks.done(key) if outcome.action is Action.ACK else marks.undone(key)
        return msgspec.structs.replace(outcome, writes=[*outcome.writes, write])

    def _marks_of(self, handler: Handler, subscription: Subscription) -> Marks | None:
        if handler.idempotency is None:
            return None
        if self._around.store is None:
            raise ConfigurationError(f"handler {self._endings.name} needs a store for its idempotency: pass `store=`")
        return Marks(handler.idempotency, str(subscription), self._around.store, subscription.lease)


def by_type(attempts: Mapping[str | None, Handle], subscription: Subscription, around: Surroundings) -> Handle:
    """Choose the attempt by the message's type: its header `type`, or else the field `type` of its body."""
    fallback = attempts.get(None)

    async def choose(delivery: Delivery) -> Outcome:
        message = delivery.message
        kind = message.headers.get(TYPE) or _type_in(message.body)
        handle = attempts.get(kind, fallback)
        if handle is not None:
            return await handle(delivery)
        known = ", ".join(sorted(str(name) for name in attempts))
        error = NoHandler(f"{subscription} has no handler for the type `{kind}`: it has {known}")
        log.error("%s is dead: %s", message.id, error)
        return after_failure(delivery, error, NO_RETRY, around.clock.time())

    return choose


class _Typed(msgspec.Struct):
    type: str | None = None


_decode_type = msgspec.json.Decoder(_Typed).decode


def _type_in(body: bytes) -> str | None:
    try:
        return _decode_type(body).type
    except msgspec.DecodeError:
        return None


def with_middleware(
    call: Callable[[Message], Any], middleware: tuple[ConsumeMiddleware, ...]
) -> Callable[[Message], Any]:
    """Wrap `call` so that the first of `middleware` is the outermost; without any it stays as it is."""
    for layer in reversed(middleware):
        call = _layer(layer, call)
    return call


def _layer(layer: ConsumeMiddleware, call_next: Callable[[Message], Any]) -> Callable[[Message], Any]:
    return lambda message: layer(message, call_next)
