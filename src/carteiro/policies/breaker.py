"""The circuit breaker around publishing: a broker that is away costs its callers an error, and no wait.

    closed ---- `failures` tries in a row failed, for `after` seconds ----> open
    open ------ the cool-down is over ------------------------------------> half-open
    half-open - the probe failed: the next cool-down is longer -----------> open
    half-open - the probe got an answer ----------------------------------> closed

While it is closed every try goes through, and how it ends is counted. While it is not, every call raises CircuitOpen
at once. The probe is the breaker's own: no caller waits for it, and a service to which nobody comes any more, since its
health says that it is cut off, finds out all the same. Only a call that succeeds ends the row of failures; so the first
failure after a probe that deceived, as on a disk that is full, opens the circuit again at once.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final, Literal, TypeVar

import msgspec

from carteiro.durations import Duration, seconds, shown
from carteiro.errors import BrokerUnavailable, CircuitOpen, ConfigurationError
from carteiro.policies.retry import exponential
from carteiro.ports.clock import Clock

log = logging.getLogger("carteiro.breaker")

T = TypeVar("T")

FORGOTTEN: Final = 60.0
"""Seconds without a try after which a row of failures says nothing of the broker any more."""

State = Literal["closed", "open", "half-open"]


class Breaker(msgspec.Struct, frozen=True):
    """When publishing to a broker that is away is cut off, and how often the broker is tried then.

    It is cut off once `failures` tries in a row have failed, the first of them at least `after` ago: a restart that
    takes less is waited for. The broker is tried again after `cooldown`, and then at waits that double up to `longest`.
    """

    failures: int = 3
    after: Duration = 5.0
    cooldown: Duration = 1.0
    longest: Duration = 15.0

    def __post_init__(self) -> None:
        if not isinstance(self.failures, int) or self.failures < 1:
            raise ConfigurationError(f"Breaker(failures={self.failures!r}): it takes at least 1 to be cut off")
        seconds(self.after)
        if not 0 < seconds(self.cooldown) <= seconds(self.longest):
            raise ConfigurationError(
                f"Breaker(cooldown={self.cooldown!r}, longest={self.longest!r}): the cooldown must be over 0, and no "
                "longer than the longest"
            )


DEFAULT_BREAKER: Final = Breaker()


class BreakerStatus(msgspec.Struct, frozen=True):
    """How it stands with publishing to one broker. Times are seconds since the epoch."""

    broker: str
    state: State
    since: float
    """When publishing was cut off or, where it is closed, when it was so last: by then it works."""
    failures: int
    """Tries that failed since the last one that succeeded, probes among them."""
    last_error: str | None
    """Of the last failure, however long ago."""
    last_error_at: float | None
    next_try: float | None
    """When the broker is tried again, while the circuit is open."""
    opened: int
    """How often publishing was cut off so far."""
    refused: int
    """How many calls were refused so far."""


class Circuit:
    """The breaker of one broker, on one event loop. `probe` asks the broker for an answer, any answer."""

    def __init__(self, breaker: Breaker, broker: str, clock: Clock, probe: Callable[[], Awaitable[object]]) -> None:
        self._broker = broker
        self._clock = clock
        self._probe = probe
        self._limit = breaker.failures
        self._after = seconds(breaker.after)
        self._cooldown = exponential(seconds(breaker.cooldown), cap=seconds(breaker.longest), jitter="equal")
        self._state: State = "closed"
        self._since = clock.time()
        self._failures = 0
        self._first = self._last = 0.0  # of the row's failures, by the monotonic clock
        self._error: str | None = None
        self._error_at: float | None = None
        self._next_try: float | None = None
        self._opened = self._refused = 0
        self._recovering: asyncio.Task[None] | None = None

    @property
    def status(self) -> BreakerStatus:
        return BreakerStatus(
            self._broker, self._state, self._since, self._failures, self._error, self._error_at, self._next_try,
            self._opened, self._refused,
        )  # fmt: skip

    @property
    def patience(self) -> float:
        """Seconds until the failures in a row can be enough to cut the broker off: a good time for the next try."""
        return max(0.0, self._first + self._after - self._clock.monotonic())

    async def call(self, work: Callable[[], Awaitable[T]]) -> T:
        """Await `work`, a try to reach the broker, and count how it ends.

        Raises CircuitOpen at once while the circuit is not closed, and from the failure that opens it. An error other
        than BrokerUnavailable says nothing of the broker, and neither does a cancel.
        """
        if self._state != "closed":
            self._refused += 1
            raise self._refusal()
        began = self._clock.monotonic()
        try:
            result = await work()
        except BrokerUnavailable as error:
            self._failed(error, began)
            if self._state == "closed":
                raise
            raise self._refusal() from error
        self._failures = 0
        if self._state != "closed":  # a try from before it opened, whose answer came late
            self._stop_recovering()
            self._close()
        return result

    async def close(self) -> None:
        """Try the broker no more."""
        if (task := self._stop_recovering()) is not None:
            await asyncio.wait([task])

    # -- steps -----------------------------------------------------------------------------------------------------

    def _failed(self, error: BrokerUnavailable, began: float) -> None:
        if self._failures == 0 or began - self._last > FORGOTTEN:
            self._failures, self._first = 0, began
        self._note(error)
        if self._state == "closed" and self._failures >= self._limit and self._last - self._first >= self._after:
            self._open()

    def _note(self, error: BrokerUnavailable) -> None:
        self._failures += 1
        self._last = self._clock.monotonic()
        self._error, self._error_at = str(error), self._clock.time()

    def _open(self) -> None:
        self._since = self._clock.time()
        self._opened += 1
        log.warning(
            "publishing to the broker `%s` is cut off: %d tries failed, over %s: %s",
            self._broker, self._failures, shown(self._last - self._first), self._error,
        )  # fmt: skip
        recovering = self._recover(self._cool_down(1))
        self._recovering = asyncio.get_running_loop().create_task(recovering, name="carteiro breaker")

    def _cool_down(self, tries: int) -> float:
        """The seconds to wait before this one of the tries."""
        wait = self._cooldown(tries)
        self._state, self._next_try = "open", self._clock.time() + wait
        return wait

    async def _recover(self, wait: float) -> None:
        """Try the broker at ever longer waits until it answers."""
        for tries in itertools.count(2):
            await self._clock.sleep(wait)
            self._state, self._next_try = "half-open", None
            log.info("the broker `%s`, to which publishing is cut off, is tried again", self._broker)
            try:
                await self._probe()
            except BrokerUnavailable as error:
                self._note(error)
                wait = self._cool_down(tries)
                log.info("publishing to the broker `%s` remains cut off: %s", self._broker, error)
            except Exception as error:
                log.info("the broker `%s` has answered: %s", self._broker, error)  # a refusal is an answer too
                break
            else:
                break
        self._recovering = None
        self._close()

    def _close(self) -> None:
        now = self._clock.time()
        log.warning(
            "publishing to the broker `%s` goes on: it was cut off for %s", self._broker, shown(now - self._since)
        )
        self._state, self._since, self._next_try = "closed", now, None

    def _stop_recovering(self) -> asyncio.Task[None] | None:
        task, self._recovering = self._recovering, None
        if task is not None:
            task.cancel()
        return task

    def _refusal(self) -> CircuitOpen:
        now = self._clock.time()
        since = datetime.fromtimestamp(self._since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        wait = 0.0 if self._next_try is None else max(0.0, self._next_try - now)
        again = f"in {shown(wait)}" if wait else "right now"
        lasting = shown(now - self._since)
        return CircuitOpen(
            f"publishing to the broker `{self._broker}` has been cut off since {since} (for {lasting}), "
            f"after {self._failures} failed tries; it is tried again {again}; the last error was: {self._error}",
            retry_after=wait,
        )
