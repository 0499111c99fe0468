"""What is to be safe in a broker before a settle: emits that the settle cannot commit.

These are the emits to another broker than the delivery's own, and, where the store is apart, those of an outcome that
writes there: its mark must not say that all is done while they are not. A crash between repeats the delivery, and they
go out again under the same ids; none is lost.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from carteiro.engine.batcher import Batcher
from carteiro.engine.failures import describe
from carteiro.engine.reconnect import reconnect_wait
from carteiro.errors import BrokerUnavailable
from carteiro.message import Action, Failure, Outcome, Outgoing
from carteiro.ports.clock import Clock

log = logging.getLogger("carteiro.worker")

LARGEST = 1000

Forward = Callable[[Sequence[Outgoing]], Awaitable[None]]
"""Publishes these to one broker and returns when they are safe; raises BrokerUnavailable while it is away."""


class Ahead(NamedTuple):
    """`emits` go first, and `outcome`, which holds the rest, is settled then."""

    emits: Sequence[Outgoing]
    outcome: Outcome


class Forwarder:
    """Publishes to one broker for the outcomes of one consumer. While it is away they wait here, and no others do.

    `settle` takes an outcome on: without what it emits here, or as a failed attempt where the broker refuses that.
    """

    def __init__(self, name: str, forward: Forward, settle: Callable[[Outcome], None], clock: Clock) -> None:
        self.giving_up = False
        """Set when the worker can wait no longer: what waits for the broker is handed back."""
        self.killed = False
        """Set when the worker does nothing any more."""
        self._name = name
        self._forward = forward
        self._settle = settle
        self._clock = clock
        self._batcher = Batcher(self._send, limit=LARGEST)
        self.add = self._batcher.add
        self.drain = self._batcher.drain

    async def _send(self, waiting: list[Ahead]) -> None:
        tries = 0
        while not self.killed:
            try:
                await self._forward([emit for ahead in waiting for emit in ahead.emits])
            except BrokerUnavailable as error:
                if self.giving_up:
                    self._hand_back(waiting, error)
                    return
                log.warning("%d outcomes wait for the broker `%s`: %s", len(waiting), self._name, error)
                await self._clock.sleep(reconnect_wait(tries))
                tries += 1
            except Exception as error:
                if len(waiting) == 1:
                    self._refused(waiting[0].outcome, error)
                    return
                for ahead in waiting:  # one of them cannot be published: find out which
                    await self._send([ahead])
                return
            else:
                for ahead in waiting:
                    self._settle(ahead.outcome)
                return

    def _hand_back(self, waiting: Sequence[Ahead], error: Exception) -> None:
        log.error(
            "%d messages are handed back, handled but not settled, for the broker `%s` cannot take what they emit: %s",
            len(waiting), self._name, error,
        )  # fmt: skip
        for ahead in waiting:
            self._settle(Outcome(ahead.outcome.delivery, Action.RELEASE))

    def _refused(self, outcome: Outcome, error: Exception) -> None:
        delivery = outcome.delivery
        log.error("%s cannot be settled: broker `%s`", delivery.message.id, self._name, exc_info=error)
        failure = Failure(delivery.message.attempt, self._clock.time(), describe(error))
        self._settle(Outcome(delivery, Action.RETRY, delay=1.0, failure=failure))
