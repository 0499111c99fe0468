"""How attempts end: what a handler's result is published as, and what its failure becomes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

import msgspec

from carteiro.durations import shown
from carteiro.engine.composing import compose
from carteiro.engine.deadlines import Deadlines
from carteiro.engine.failures import after_failure, describe, lost_with_worker
from carteiro.engine.isolation import Pending
from carteiro.engine.replies import emitted_id, reply
from carteiro.engine.routes import Handler
from carteiro.errors import HandlerFailed, InvalidBody
from carteiro.handlers.codecs import Codec, encode
from carteiro.handlers.injected import Emitted
from carteiro.handlers.running import Called
from carteiro.message import (
    CONTENT_TYPE,
    EXPIRES_AT,
    NO_HEADERS,
    REPLY_TO,
    Action,
    Delivery,
    Message,
    Native,
    Outcome,
    Outgoing,
    Subscription,
)
from carteiro.ports.clock import Clock
from carteiro.ports.store import Store

log = logging.getLogger("carteiro.worker")

Intercept = Callable[[Outgoing], Awaitable[list[Outgoing]]]
"""Publish middleware for what a handler emits: from one message to those that are to be sent."""


class Surroundings(msgspec.Struct, eq=False):
    """What all the attempts of a worker share. `broker_of` names the broker of what goes to a topic, as asked for."""

    clock: Clock
    deadlines: Deadlines
    broker_of: Callable[[str | Native, str | None], str]
    store: Store | None = None
    intercept: Intercept | None = None
    codec: Codec = "json"
    stopping: bool = False
    waiting: Callable[[Subscription], Collection[Delivery]] = lambda _: ()
    """What was fetched of a subscription and has not begun, the next one first."""

    def expired(self, headers: Mapping[str, str]) -> bool:
        """Whether the message's time ran out before it was started; raises InvalidBody if its header is no time."""
        expires_at = headers.get(EXPIRES_AT)
        if expires_at is None:
            return False
        try:
            return float(expires_at) < self.clock.time()
        except ValueError:
            raise InvalidBody(f"the header {EXPIRES_AT}: {expires_at} is not a number of seconds") from None

    async def rest(self, pending: Pending, timeout: float | None) -> Any:
        """The result of a handler that waits, within its timeout if it has one."""
        rest = pending.rest()
        return await (rest if timeout is None else self.deadlines.limit(rest, timeout))


class Endings:
    """The ends of one handler's attempts."""

    def __init__(self, handler: Handler, subscription: Subscription, around: Surroundings) -> None:
        self.name = f"{handler.plan.name} ({handler.plan.place})"
        self.silent = not (handler.publishes or handler.plan.emits)
        """Whether nothing is ever published but replies."""
        self.retry = handler.retry
        self._handler = handler
        self._subscription = subscription
        self._around = around

    async def published(self, message: Message, result: Any) -> list[Outgoing]:
        """What an attempt publishes if it is acked: the reply, what the handler returned, what it emitted."""
        outgoing = self.replied(message, result)
        emitted: list[Emitted] = []
        if isinstance(result, Called):
            result, emitted = result.result, list(result.emitted)
        if result is not None:
            emitted.extend(
                Emitted(
                    to.topic, result, None if to.key is None else to.key(result), NO_HEADERS, 0.0, to.target, to.broker
                )
                for to in self._handler.publishes
            )
        for number, emit in enumerate(emitted):
            sent = self._outgoing(message, emit, number)
            outgoing.extend([sent] if self._around.intercept is None else await self._intercepted(sent))
        return outgoing

    def replied(self, message: Message, result: Any) -> list[Outgoing]:
        """The reply, if one is waited for."""
        if REPLY_TO not in message.headers:
            return []
        if isinstance(result, Called):
            result = result.result
        body, content_type = encode(result, codec=self._around.codec)
        return [reply(message, self._subscription, body, {CONTENT_TYPE: content_type} if content_type else {})]

    def failed(self, delivery: Delivery, error: BaseException) -> Outcome:
        """Release if the worker is stopping; otherwise another attempt or a dead letter, and a line in the log."""
        if isinstance(error, asyncio.CancelledError):
            if self._around.stopping:
                return Outcome(delivery, Action.RELEASE)
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            error = HandlerFailed("it was cancelled from within")
        message, retry = delivery.message, self.retry
        outcome = after_failure(delivery, error, retry, self._around.clock.time())
        if outcome.action is Action.RETRY:
            log.warning(
                "%s failed on %s, attempt %d of %d, again in %s: %s",
                self.name, message.id, message.attempt, retry.attempts, shown(outcome.delay), describe(error),
            )  # fmt: skip
            return outcome
        log.error("%s gave up on %s after attempt %d: %s", self.name, message.id, message.attempt, describe(error))
        return outcome

    def lost(self, delivery: Delivery) -> Outcome:
        """A dead letter for a message whose last permitted attempt never ended, and a line in the log."""
        outcome = lost_with_worker(delivery, self._around.clock.time())
        assert outcome.failure is not None
        log.error("%s gave up on %s: %s", self.name, delivery.message.id, outcome.failure.error)
        return outcome

    def blocked(self, held: float) -> None:
        log.warning(
            "handler %s held the event loop for %.0f ms: nothing else ran meanwhile. Await what it waits for, "
            "or make it a plain `def` or runs_in='thread'", self.name, held * 1000,
        )  # fmt: skip

    async def _intercepted(self, message: Outgoing) -> list[Outgoing]:
        """What publish middleware makes of a message goes where that was to go."""
        assert self._around.intercept is not None
        return [
            sent if sent.broker == message.broker else msgspec.structs.replace(sent, broker=message.broker)
            for sent in await self._around.intercept(message)
        ]

    def _outgoing(self, parent: Message, emit: Emitted, number: int) -> Outgoing:
        return compose(
            emit.topic, emit.value, id=emitted_id(parent, self._subscription, number), key=emit.key,
            headers=emit.headers, correlation_id=parent.correlation_id, delay=emit.delay, codec=self._around.codec,
            target=emit.target, broker=self._around.broker_of(emit.target or emit.topic, emit.broker),
        )  # fmt: skip
