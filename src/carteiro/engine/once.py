"""Attempts that do nothing where the store says that it is done already, and leave their mark there with the ack."""

from __future__ import annotations

import logging
from typing import Final

import msgspec

from carteiro.engine.attempt import Attempt
from carteiro.engine.endings import Surroundings
from carteiro.errors import BrokerUnavailable, ConfigurationError
from carteiro.message import Action, Delivery, Outcome, Subscription
from carteiro.policies.idempotency import Idempotency, Marks, Standing

log = logging.getLogger("carteiro.worker")

STEP_BACK: Final = 0.5
"""Seconds after which a message is looked at again whose idempotency key another one holds."""


class Once:
    """An attempt behind its idempotency."""

    def __init__(self, attempt: Attempt, policy: Idempotency, subscription: Subscription, around: Surroundings) -> None:
        self._attempt = attempt
        self._name = attempt.endings.name
        if around.store is None:
            raise ConfigurationError(f"handler {self._name} needs a store for its idempotency: pass `store=`")
        self._marks = Marks(policy, str(subscription), around.store)

    async def __call__(self, delivery: Delivery) -> Outcome:
        """Raises nothing: also a store that is away is an outcome."""
        message, marks = delivery.message, self._marks
        try:
            ended = self._attempt.ended(delivery)
            if ended is not None:
                return await self._given_back(ended)
            key = marks.key_of(message)
            standing = await marks.claim(key, message)
        except BrokerUnavailable as error:
            log.warning("%s waits for the store: %s", self._name, error)
            return Outcome(delivery, Action.RELEASE, delay=STEP_BACK)
        except Exception as error:
            return self._attempt.endings.failed(delivery, error)
        if standing is Standing.DONE:
            return Outcome(delivery, Action.ACK, emits=self._attempt.endings.replied(message, None))
        if standing is Standing.TAKEN:
            return Outcome(delivery, Action.RELEASE, delay=STEP_BACK)
        outcome = await self._attempt(delivery)
        write = marks.done(key) if outcome.action is Action.ACK else marks.undone(key)
        return msgspec.structs.replace(outcome, writes=[*outcome.writes, write])

    async def _given_back(self, outcome: Outcome) -> Outcome:
        """The end of a message that is not attempted again: an attempt that was lost may have left a claim."""
        message = outcome.delivery.message
        if message.attempt == 1:
            return outcome
        return msgspec.structs.replace(outcome, writes=await self._marks.given_back(message))
