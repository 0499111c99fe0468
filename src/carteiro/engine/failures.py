"""What a failed attempt becomes: another one, or a dead letter."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from carteiro.durations import seconds
from carteiro.engine.replies import reply
from carteiro.errors import (
    InvalidBody,
    InvalidHandler,
    NoHandler,
    NoResult,
    Reject,
    ResultTooLarge,
    RetryLater,
    Unencodable,
    WorkerLost,
)
from carteiro.message import ERROR, REPLY_TO, Action, Delivery, Failure, Outcome
from carteiro.policies.retry import Retry

log = logging.getLogger("carteiro.worker")

FALLBACK: Final = 1.0
"""Seconds before a retry whose own delay is no length of time."""

_OURS = str(Path(__file__).parent.parent)
_HOPELESS = (InvalidBody, InvalidHandler, NoHandler, NoResult, Reject, ResultTooLarge, Unencodable)


def describe(error: BaseException) -> str:
    """`Type: text`, as shown in lists; a Reject or an unfit body speaks for itself."""
    try:
        text = str(error)
    except Exception as worse:
        text = f"(its text cannot be had: {type(worse).__name__})"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def is_hopeless(reason: str) -> bool:
    """Whether a dead letter of this reason, as `describe` has it, would only die again however often it is tried."""
    kind = reason.partition(":")[0]
    return any(kind == error.__name__ for error in _with_subclasses(_HOPELESS))


def failure_of(delivery: Delivery, error: BaseException, now: float) -> Failure:
    return Failure(delivery.message.attempt, now, describe(error), _traceback(error))


def lost_with_worker(delivery: Delivery, now: float) -> Outcome:
    """The outcome for a message whose last permitted attempt never ended."""
    if not delivery.lost and delivery.history:
        return _dead(delivery, delivery.history[-1])  # it failed as often as is permitted now
    times = "once" if delivery.lost == 1 else f"{delivery.lost} times"
    error = WorkerLost(f"the worker died or lost its lease {times} while it held this message")
    return _dead(delivery, Failure(delivery.message.attempt - 1, now, describe(error), ""))


def after_failure(delivery: Delivery, error: BaseException, retry: Retry, now: float) -> Outcome:
    """Retry or dead, as the policy and the kind of error say."""
    failure = failure_of(delivery, error, now)
    delay = _retry_delay(delivery, error, retry, now)
    if delay is None:
        return _dead(delivery, failure)
    return Outcome(delivery, Action.RETRY, delay=delay, failure=failure)


def _dead(delivery: Delivery, failure: Failure) -> Outcome:
    """A dead letter; whoever waits for a reply is told that there will be none, and why."""
    message, told = delivery.message, {ERROR: failure.error}
    emits = [reply(message, delivery.subscription, b"null", told)] if REPLY_TO in message.headers else ()
    return Outcome(delivery, Action.DEAD, failure=failure, emits=emits)


def _retry_delay(delivery: Delivery, error: BaseException, retry: Retry, now: float) -> float | None:
    """Seconds until the next attempt, or None if there is none."""
    message = delivery.message
    if isinstance(error, _HOPELESS) or message.attempt >= retry.attempts:
        return None
    asked = isinstance(error, RetryLater)
    if not asked and not isinstance(error, WorkerLost) and not retry.wants(error):
        return None
    delay = _backoff(delivery, error, retry)
    if retry.max_age is not None and now + delay - message.published > seconds(retry.max_age):
        return None
    return delay


def _backoff(delivery: Delivery, error: BaseException, retry: Retry) -> float:
    """What the handler asks for, or else the policy; neither can keep a message from being tried again."""
    try:
        if isinstance(error, RetryLater) and error.delay is not None:
            return seconds(error.delay)
        return seconds(retry.backoff(len(delivery.history) + 1))
    except Exception as wrong:
        log.error("the backoff of %s cannot be used, it waits %g s: %s", delivery.subscription, FALLBACK, wrong)
        return FALLBACK


def _traceback(error: BaseException) -> str:
    """The traceback from the handler's first frame on, without the engine's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OURS):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace))


def _with_subclasses(kinds: Iterable[type[BaseException]]) -> Iterator[type[BaseException]]:
    """These and the user's own kinds of them: a `class OrderClosed(Reject)`."""
    for kind in kinds:
        yield kind
        yield from _with_subclasses(kind.__subclasses__())
