"""Where dead letters are off: what fails for good is dropped, and said so, instead of kept."""

from __future__ import annotations

import logging

import msgspec

from carteiro.engine.settler import Settler
from carteiro.message import Action, Outcome

log = logging.getLogger("carteiro.worker")


class Dropper:
    """Between a lane and the settler. `count` is how many it has dropped; whoever waits for a reply is still told."""

    def __init__(self, settler: Settler) -> None:
        self.count = 0
        self._settler = settler

    def __call__(self, outcome: Outcome) -> None:
        if outcome.action is Action.DEAD:
            self.count += 1
            delivery, failure = outcome.delivery, outcome.failure
            log.error(
                "dropped %s of %s, which keeps no dead letters (%d so far): %s",
                delivery.message.id, delivery.subscription, self.count, "" if failure is None else failure.error,
            )  # fmt: skip
            self._settler.lanes[delivery.subscription].last_failure = failure
            outcome = msgspec.structs.replace(outcome, action=Action.ACK, failure=None)
        self._settler.add(outcome)
