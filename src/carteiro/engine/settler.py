"""The place where outcomes go out: whatever has gathered, whenever the last settle returns."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from carteiro.engine.batcher import Batcher
from carteiro.engine.lane import Lane
from carteiro.engine.reconnect import reconnect_wait
from carteiro.errors import BrokerUnavailable
from carteiro.message import Delivery, Outcome, Subscription
from carteiro.ports.broker import Consumer
from carteiro.ports.clock import Clock
from carteiro.ports.store import Store

log = logging.getLogger("carteiro.worker")

LARGEST = 5000


class Settler:
    """Settles for the lanes of one consumer. What the broker cannot take now is kept and tried again.

    `store` is where writes go that the broker cannot commit with the settle: first, so that a crash between repeats the
    delivery and loses nothing.
    """

    def __init__(self, consumer: Consumer, store: Store | None, clock: Clock) -> None:
        self.lanes: Mapping[Subscription, Lane] = {}
        self.giving_up = False
        """Set when the worker can wait no longer: what the broker does not take is left to its lease."""
        self._consumer = consumer
        self._store = store
        self._clock = clock
        self._batcher = Batcher(self._send, limit=LARGEST)
        self.add = self._batcher.add
        self.drain = self._batcher.drain

    async def _send(self, outcomes: list[Outcome]) -> None:
        tries = 0
        while True:
            try:
                if self._store is not None:
                    await self._store.write([write for outcome in outcomes for write in outcome.writes])
                lost = await self._consumer.settle(outcomes)
                break
            except BrokerUnavailable as error:
                if self.giving_up:
                    log.error("%d outcomes are not settled, their messages will come again: %s", len(outcomes), error)
                    lost = [outcome.delivery for outcome in outcomes]
                    break
                log.warning("%d outcomes wait for the broker: %s", len(outcomes), error)
                await self._clock.sleep(reconnect_wait(tries))
                tries += 1
            except Exception as error:
                if len(outcomes) > 1:  # one of them cannot be settled: find out which
                    for outcome in outcomes:
                        await self._send([outcome])
                    return
                log.error("%s cannot be settled, it will come again", outcomes[0].delivery.message.id, exc_info=error)
                lost = [outcomes[0].delivery]
                break
        for delivery in lost:
            self.lanes[delivery.subscription].lost(delivery)
        self._tell(outcomes)

    def _tell(self, outcomes: list[Outcome]) -> None:
        """Tell each lane of its own; neighbours of one subscription go together."""
        run: list[Delivery] = []
        of = outcomes[0].delivery.subscription
        for outcome in outcomes:
            delivery = outcome.delivery
            if delivery.subscription is not of:
                self.lanes[of].settled(run)
                run, of = [], delivery.subscription
            run.append(delivery)
        self.lanes[of].settled(run)
