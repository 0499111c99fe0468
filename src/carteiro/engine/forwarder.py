"""What is to be safe elsewhere before a settle, as the settle cannot commit it: in stages, one after the other.

Where the store is apart from the broker an outcome goes through these, as far as it has something for them:

    writes that expect a version    whether it holds at all: if one is refused, nothing more of it is done
    joins                           what those that say so emit is emitted with the rest
    emits                           to another broker than the delivery's own; to its own, if writes are left
    the other writes, the settle    a mark that all is done comes when it is

Where broker and store are one, only what goes to other brokers is to go first. A crash between two of them repeats the
delivery; its emits go out again under the same ids, and its joins say again what they said. None is lost.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import msgspec

from carteiro.engine.batcher import Batcher
from carteiro.engine.failures import describe
from carteiro.engine.reconnect import reconnect_wait
from carteiro.errors import BrokerUnavailable
from carteiro.message import Action, Failure, Outcome, Outgoing, Write
from carteiro.ports.clock import Clock
from carteiro.ports.store import Store

log = logging.getLogger("carteiro.worker")

LARGEST: Final = 1000
STEP_BACK: Final = 1.0
"""Seconds after which a delivery comes again one of whose writes expected in vain."""

Forward = Callable[[Sequence[Outgoing]], Awaitable[None]]
"""Publishes these to one broker and returns when they are safe; raises BrokerUnavailable while it is away."""


class Step(Protocol):
    """One thing that is to be done of outcomes first."""

    @property
    def where(self) -> str:
        """The system that does it, as the log names it."""
        ...

    def wants(self, outcome: Outcome) -> bool:
        """Whether there is anything to do of this one."""
        ...

    async def take(self, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
        """Do it; returns them without it. Raises BrokerUnavailable where it cannot be done now."""
        ...


class Forwarder:
    """One stage of one consumer's outcomes. While its broker or store is away they wait here, and no others do.

    `settle` takes an outcome on: without what is done here, or as a failed attempt where that is refused.
    """

    def __init__(self, step: Step, settle: Callable[[Outcome], None], clock: Clock) -> None:
        self.giving_up = False
        """Set when the worker can wait no longer: what waits here is handed back."""
        self.killed = False
        """Set when the worker does nothing any more."""
        self._step = step
        self._settle = settle
        self._clock = clock
        self._batcher = Batcher(self._send, limit=LARGEST)
        self.wants = step.wants
        self.add = self._batcher.add
        self.drain = self._batcher.drain

    async def _send(self, waiting: list[Outcome]) -> None:
        tries = 0
        while not self.killed:
            try:
                taken = await self._step.take(waiting)
            except BrokerUnavailable as error:
                if self.giving_up:
                    self._hand_back(waiting, error)
                    return
                log.warning("%d outcomes wait for %s: %s", len(waiting), self._step.where, error)
                await self._clock.sleep(reconnect_wait(tries))
                tries += 1
            except Exception as error:
                if len(waiting) == 1:
                    self._refused(waiting[0], error)
                    return
                for outcome in waiting:  # one of them cannot be taken: find out which
                    await self._send([outcome])
                return
            else:
                for outcome in taken:
                    self._settle(outcome)
                return

    def _hand_back(self, waiting: Sequence[Outcome], error: Exception) -> None:
        log.error(
            "%d messages are handed back, handled but not settled, for %s cannot take what goes there first: %s",
            len(waiting), self._step.where, error,
        )  # fmt: skip
        for outcome in waiting:
            self._settle(Outcome(outcome.delivery, Action.RELEASE))

    def _refused(self, outcome: Outcome, error: Exception) -> None:
        delivery = outcome.delivery
        log.error("%s cannot be settled: %s", delivery.message.id, self._step.where, exc_info=error)
        failure = Failure(delivery.message.attempt, self._clock.time(), describe(error))
        self._settle(Outcome(delivery, Action.RETRY, delay=1.0, failure=failure))


class Publishing:
    """What is emitted to the broker `name`; `own` is the delivery's, to which only goes what has writes after it."""

    def __init__(self, name: str, own: str, forward: Forward) -> None:
        self.where = f"the broker `{name}`"
        self._name = name
        self._own = own
        self._forward = forward

    def wants(self, outcome: Outcome) -> bool:
        return bool(self._name != self._own or outcome.writes) and any(map(self._is_here, outcome.emits))

    async def take(self, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
        await self._forward([emit for outcome in outcomes for emit in outcome.emits if self._is_here(emit)])
        return [
            msgspec.structs.replace(outcome, emits=[emit for emit in outcome.emits if not self._is_here(emit)])
            for outcome in outcomes
        ]

    def _is_here(self, emit: Outgoing) -> bool:
        return (emit.broker or self._own) == self._name


class Writing:
    """The writes that expect a version. An outcome is released, to come again, where one of its was refused.

    That may be for its own write, of a try that got no answer: to the delivery that comes then all is as after a crash.
    """

    where = "the store"

    def __init__(self, store: Store) -> None:
        self._store = store

    def wants(self, outcome: Outcome) -> bool:
        return any(map(expects, outcome.writes))

    async def take(self, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
        expecting = [[*filter(expects, outcome.writes)] for outcome in outcomes]
        made = iter(await self._store.write([write for writes in expecting for write in writes]))
        held = [False not in [next(made) for _ in writes] for writes in expecting]
        return [
            _written(outcome) if holds else _stepped_back(outcome)
            for outcome, holds in zip(outcomes, held, strict=True)
        ]


class Joining:
    """The joins: the emits of those that say so are added to the outcome's."""

    where = "the store"

    def __init__(self, store: Store) -> None:
        self._store = store

    def wants(self, outcome: Outcome) -> bool:
        return bool(outcome.joins)

    async def take(self, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
        told = iter(await self._store.join([join for outcome in outcomes for join in outcome.joins]))
        joined = [[emit for join in outcome.joins if next(told) for emit in join.emits] for outcome in outcomes]
        return [
            msgspec.structs.replace(outcome, joins=(), emits=[*outcome.emits, *emits])
            for outcome, emits in zip(outcomes, joined, strict=True)
        ]


def expects(write: Write) -> bool:
    """Whether it holds only over a version that was read."""
    return write.expect is not None


def _written(outcome: Outcome) -> Outcome:
    return msgspec.structs.replace(outcome, writes=[write for write in outcome.writes if not expects(write)])


def _stepped_back(outcome: Outcome) -> Outcome:
    log.warning("%s is not settled, and comes again: the store has changed under it", outcome.delivery.message.id)
    return Outcome(outcome.delivery, Action.RELEASE, delay=STEP_BACK)
