"""One attempt: from a delivery to its outcome.

What the policies ask for is put together once, when the worker starts: a handler without a timeout, middleware or
publishers has none of their steps on its way.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec

from carteiro.engine.endings import Endings, Surroundings
from carteiro.engine.failures import after_failure
from carteiro.engine.isolation import Pending, begin
from carteiro.engine.routes import ConsumeMiddleware, Handler
from carteiro.errors import NoHandler
from carteiro.handlers.codecs import MSGPACK
from carteiro.handlers.plan import Plan
from carteiro.message import CONTENT_TYPE, REPLY_TO, TYPE, Action, Delivery, Message, Outcome, Subscription
from carteiro.policies.retry import NO_RETRY

log = logging.getLogger("carteiro.worker")

Handle = Callable[[Delivery], Awaitable[Outcome]]

ACK: Final = Action.ACK


class Attempt:
    """The attempts of one handler behind one subscription."""

    def __init__(self, handler: Handler, subscription: Subscription, around: Surroundings) -> None:
        plan = handler.plan
        assert isinstance(plan, Plan)
        self.endings = Endings(handler, subscription, around)
        self._around = around
        self._silent = self.endings.silent
        self._blocked = self.endings.blocked
        self._attempts = handler.retry.attempts
        self._timeout = handler.timeout
        self._invoke: Callable[[Message], Any] = with_middleware(plan.call, handler.middleware)

    async def __call__(self, delivery: Delivery) -> Outcome:
        message = delivery.message
        headers = message.headers
        try:
            if headers or message.attempt > self._attempts:
                ended = self.ended(delivery)
                if ended is not None:
                    return ended
            result = begin(self._invoke(message), self._blocked)
            if type(result) is Pending:
                result = await self._around.rest(result, self._timeout)
            if self._silent and REPLY_TO not in headers:
                return Outcome(delivery, ACK)
            return Outcome(delivery, ACK, emits=await self.endings.published(message, result))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return self.endings.failed(delivery, error)

    def ended(self, delivery: Delivery) -> Outcome | None:
        """The outcome of a message that is not to be attempted any more, or None."""
        message = delivery.message
        if message.attempt > self._attempts:
            return self.endings.lost(delivery)
        return Outcome(delivery, ACK) if self._around.expired(message.headers) else None


def by_type(attempts: Mapping[str | None, Handle], subscription: Subscription, around: Surroundings) -> Handle:
    """Choose the attempt by the message's type: its header `type`, or else the field `type` of its body."""
    fallback = attempts.get(None)

    async def choose(delivery: Delivery) -> Outcome:
        message = delivery.message
        kind = message.headers.get(TYPE) or _type_in(message)
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


_in_json = msgspec.json.Decoder(_Typed).decode
_in_msgpack = msgspec.msgpack.Decoder(_Typed).decode


def _type_in(message: Message) -> str | None:
    packed = message.headers.get(CONTENT_TYPE) == MSGPACK
    try:
        return (_in_msgpack if packed else _in_json)(message.body).type
    except ValueError:
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
