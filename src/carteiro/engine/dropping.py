"""Where dead letters are off: what fails for good is dropped, and said so, instead of kept."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from carteiro.message import Action, Outcome

log = logging.getLogger("carteiro.worker")


class Dropper:
    """Stands before a lane's settler. `count` is how many it has dropped; whoever waits for a reply is still told."""

    def __init__(self, settle: Callable[[Outcome], None]) -> None:
        self.count = 0
        self._settle = settle

    def __call__(self, outcome: Outcome) -> None:
        if outcome.action is Action.DEAD:
            self.count += 1
            delivery, failure = outcome.delivery, outcome.failure
            log.error(
                "dropped %s of %s, which keeps no dead letters (%d so far): %s",
                delivery.message.id, delivery.subscription, self.count, "" if failure is None else failure.error,
            )  # fmt: skip
            outcome = msgspec.structs.replace(outcome, action=Action.ACK, failure=None)
        self._settle(outcome)
