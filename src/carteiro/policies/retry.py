"""When a failed message is tried again, and when no more."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Literal

import msgspec

from carteiro.durations import Duration, seconds
from carteiro.errors import ConfigurationError

Backoff = Callable[[int], float]
"""From the number of failures so far (1 after the first) to the seconds to wait."""

Jitter = Literal["full", "equal"] | None


class Exponential(msgspec.Struct, frozen=True):
    """The backoff that `exponential` makes; times in seconds. As a value it can go with a message."""

    base: float
    factor: float
    cap: float | None
    jitter: Jitter

    def __call__(self, failures: int) -> float:
        try:
            delay = self.base * self.factor ** (failures - 1)
        except OverflowError:
            delay = float("inf")
        if self.cap is not None:
            delay = min(self.cap, delay)
        if self.jitter == "full":
            return random.uniform(0, delay)
        if self.jitter == "equal":
            return random.uniform(delay / 2, delay)
        return delay


def exponential(
    base: float | timedelta = 1.0, *, factor: float = 2.0, cap: float | timedelta | None = None, jitter: Jitter = "full"
) -> Backoff:
    """`base · factor^(n-1)` seconds after the nth failure, at most `cap`.

    Jitter spreads retries that would arrive together: `"full"` picks between 0 and the delay, `"equal"` between half of
    it and all of it (Brooker, "Exponential Backoff And Jitter", 2015).
    """
    first = seconds(base)
    if first <= 0 or factor < 1:
        raise ConfigurationError(
            f"exponential({base}, factor={factor}): the base must be over 0, the factor at least 1"
        )
    return Exponential(first, factor, None if cap is None else seconds(cap), jitter)


def constant(delay: float | timedelta, *, jitter: Jitter = None) -> Backoff:
    """The same delay after each failure."""
    return Exponential(seconds(delay), 1.0, None, jitter)


class Retry(msgspec.Struct, frozen=True):
    """How often, how long and for what a message is tried again.

    `attempts` counts the first one and those whose worker died. `max_age`, from the time of publishing, ends it too.
    With `on`, only these exceptions are retried; with `not_on`, these are not. What is not retried is dead.
    """

    attempts: int = 5
    backoff: Backoff = exponential(1, cap=60)
    on: tuple[type[BaseException], ...] = (Exception,)
    not_on: tuple[type[BaseException], ...] = ()
    max_age: Duration | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.attempts, int) or self.attempts < 1:
            raise ConfigurationError(f"Retry(attempts={self.attempts!r}): the first attempt counts, so at least 1")
        for option in ("on", "not_on"):
            kinds = getattr(self, option)
            if not isinstance(kinds, tuple) or not all(
                isinstance(k, type) and issubclass(k, BaseException) for k in kinds
            ):
                raise ConfigurationError(f"Retry({option}=…) takes a tuple of exception types, not {kinds!r}")
        if self.max_age is not None:
            seconds(self.max_age)

    def wants(self, error: BaseException) -> bool:
        """Whether this kind of error is worth another attempt at all."""
        return isinstance(error, self.on) and not isinstance(error, self.not_on)


NO_RETRY = Retry(attempts=1)
