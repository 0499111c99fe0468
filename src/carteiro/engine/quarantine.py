"""A message that kills its worker must not take its neighbours along.

A worker's death costs every message that it held an attempt, also those that had not started: nobody can know which
one it was. So a message that was lost twice, or whose last attempt this is, is a *suspect*. Of the suspects of a
process one runs at a time; the others are released, durably, before it starts. If it kills the worker again, only it is
lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from carteiro.engine.lane import Lane
from carteiro.message import Action, Delivery, Outcome
from carteiro.ports.broker import Consumer

LOOK_AGAIN: Final = 0.2
"""Seconds for which a suspect steps back while another runs."""


class Quarantine:
    """Lets one suspect through at a time, whatever its lane: it is the process that dies."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._running: tuple[Lane, Delivery] | None = None

    async def inspect(self, lane: Lane, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """What of the deliveries may start now."""
        suspects = [delivery for delivery in deliveries if delivery.message.attempt > 1 and _suspect(lane, delivery)]
        if suspects and not self._one_runs():
            self._running = lane, suspects.pop(0)
        if not suspects:
            return deliveries
        await self._consumer.settle([Outcome(suspect, Action.RELEASE, delay=LOOK_AGAIN) for suspect in suspects])
        apart = set(suspects)
        return [delivery for delivery in deliveries if delivery not in apart]

    def _one_runs(self) -> bool:
        if self._running is None:
            return False
        lane, suspect = self._running
        return suspect in lane.held


def _suspect(lane: Lane, delivery: Delivery) -> bool:
    lost, attempt = delivery.lost, delivery.message.attempt
    return attempt <= lane.attempts and (lost >= 2 or (lost >= 1 and attempt == lane.attempts))
