"""Keeps the leases of what is held, however long it runs.

Whatever is held longer than a third of its lease is renewed, all in one call. What only waits in a buffer for that long
is handed back instead: others may have time for it. While nothing is held there is no timer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

from carteiro.engine.lane import Lane
from carteiro.message import Delivery, Subscription
from carteiro.ports.broker import Consumer
from carteiro.ports.clock import Clock

log = logging.getLogger("carteiro.worker")


class Leases:
    """Renews for the lanes of one consumer until it is cancelled."""

    def __init__(self, consumer: Consumer, lanes: Collection[Lane], clock: Clock) -> None:
        self._consumer = consumer
        self._lanes = {lane.subscription: lane for lane in lanes}
        self._clock = clock
        self._tick = min((lane.subscription.lease for lane in lanes), default=30.0) / 6
        self._held = asyncio.Event()

    def begin(self) -> None:
        """Something is held."""
        self._held.set()

    async def run(self) -> None:
        while True:
            await self._held.wait()
            await self._clock.sleep(self._tick)
            if not any(lane.held for lane in self._lanes.values()):
                self._held.clear()
                continue
            await self._renew()

    async def _renew(self) -> None:
        now = self._clock.monotonic()
        due: list[Delivery] = []
        for lane in self._lanes.values():
            aging = now - lane.subscription.lease / 3
            old = [delivery for delivery, since in lane.held.items() if since <= aging]
            if not old:
                continue
            waiting = set(lane.buffer)
            lane.hand_back([delivery for delivery in old if delivery in waiting])
            due.extend(delivery for delivery in old if delivery not in waiting)
        if not due:
            return
        try:
            lost = await self._consumer.renew(due)
        except Exception as error:
            log.warning("%d leases could not be renewed, trying again: %s", len(due), error)
            return
        for delivery in lost:
            self._lane(delivery).lost(delivery)
        for delivery in due:
            held = self._lane(delivery).held
            if delivery in held:
                del held[delivery]
                held[delivery] = now

    def _lane(self, delivery: Delivery) -> Lane:
        subscription: Subscription = delivery.subscription
        return self._lanes[subscription]
