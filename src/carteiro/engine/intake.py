"""The place where deliveries come in: one fetch at a time for all lanes, for no more than they have room for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from carteiro.engine.lane import Lane
from carteiro.engine.quarantine import Quarantine
from carteiro.engine.reconnect import reconnect_wait
from carteiro.errors import BrokerCorrupted, BrokerUnavailable
from carteiro.message import Action, Delivery, Outcome, Subscription
from carteiro.policies.rate import RateLimiter
from carteiro.ports.broker import Consumer
from carteiro.ports.clock import Clock

log = logging.getLogger("carteiro.worker")

CALM: Final = 15.0
"""Seconds after which a fetch that only waits tells that the broker is back: longer than a call takes to fail."""


class Intake:
    """Feeds the lanes of one consumer until it is cancelled.

    A fetch names the lanes that have room when it starts. If it waits and another lane gets room meanwhile, it is
    cancelled, which loses nothing, and begun again for all.
    """

    def __init__(
        self,
        consumer: Consumer,
        lanes: Mapping[Subscription, Lane],
        limits: Mapping[Subscription, RateLimiter],
        quarantine: Quarantine,
        on_claimed: Callable[[], None],
        clock: Clock,
    ) -> None:
        self.trouble: str | None = None
        """Why nothing comes in, while that is so."""
        self._tries = 0
        self._consumer = consumer
        self._lanes = lanes
        self._limits = limits
        self._quarantine = quarantine
        self._on_claimed = on_claimed
        self._clock = clock
        self._fetching: asyncio.Future[Sequence[Delivery]] | None = None
        self._asked: set[Subscription] = set()
        self._wanted = asyncio.Event()
        self._timers: dict[Subscription, asyncio.Task[None]] = {}
        for lane in lanes.values():
            lane.hungry = lambda lane=lane: self._on_hungry(lane)  # type: ignore[misc]

    async def run(self) -> None:
        while True:
            room = self._room()
            if not room:
                await self._wanted.wait()
                self._wanted.clear()
                continue
            try:
                deliveries = await self._fetch(room)
                await self._hand_over(deliveries)
            except BrokerCorrupted:
                raise
            except Exception as error:
                self.trouble = str(error)
                log.warning(
                    "no messages come in, trying again: %s", error, exc_info=not isinstance(error, BrokerUnavailable)
                )
                await self._clock.sleep(reconnect_wait(self._tries))
                self._tries += 1
                continue
            if deliveries:
                self._well()

    def has_room(self, subscription: Subscription) -> bool:
        """Whether something is fetched for it, as far as it and its rate limit go."""
        return subscription not in self._timers and self._lanes[subscription].room() > 0

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()

    def _room(self) -> dict[Subscription, int]:
        """What each lane can take, and its rate limit could permit."""
        room: dict[Subscription, int] = {}
        for subscription, lane in self._lanes.items():
            free = lane.room()
            limit = self._limits.get(subscription)
            if limit is not None:
                free = 0 if subscription in self._timers else min(free, limit.burst)
            if free > 0:
                room[subscription] = free
        return room

    async def _permitted(self, lane: Lane, limit: RateLimiter, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """What the rate limit lets start now; the rest goes back to the broker until there is a permit again."""
        granted, wait = await limit.take(len(deliveries))
        if wait > 0 and lane.subscription not in self._timers:
            self._timers[lane.subscription] = asyncio.create_task(self._later(lane, wait))
        surplus = deliveries[granted:]
        if surplus:
            await self._consumer.settle([Outcome(delivery, Action.RELEASE, delay=wait) for delivery in surplus])
        return deliveries[:granted]

    async def _later(self, lane: Lane, wait: float) -> None:
        try:
            await self._clock.sleep(wait)
        finally:
            del self._timers[lane.subscription]
        self._on_hungry(lane)

    async def _fetch(self, room: dict[Subscription, int]) -> Sequence[Delivery]:
        self._asked = set(room)
        self._fetching = fetching = asyncio.ensure_future(self._consumer.fetch(room))
        calm = None if self.trouble is None else asyncio.create_task(self._calm())
        try:
            return await fetching
        except asyncio.CancelledError:
            if fetching.cancelled() and not _being_cancelled():
                return ()
            if fetching.done() and not fetching.cancelled() and fetching.exception() is None:
                self._hand_back(fetching.result())  # stopped between the answer and its waking
            fetching.cancel()
            raise
        finally:
            self._fetching = None
            if calm is not None:
                calm.cancel()

    async def _calm(self) -> None:
        await self._clock.sleep(CALM)
        self._well()

    def _well(self) -> None:
        if self.trouble is not None:
            log.warning("the broker is back")
            self.trouble, self._tries = None, 0

    def _on_hungry(self, lane: Lane) -> None:
        if lane.subscription in self._timers:
            return  # its rate limit says when
        self._wanted.set()
        if self._fetching is not None and lane.subscription not in self._asked:
            self._fetching.cancel()

    async def _hand_over(self, deliveries: Sequence[Delivery]) -> None:
        """Give each lane its own, in order; neighbours of one subscription go together."""
        if deliveries:
            self._on_claimed()
        start = 0
        try:
            while start < len(deliveries):
                subscription = deliveries[start].subscription
                end = start + 1
                while end < len(deliveries) and deliveries[end].subscription is subscription:
                    end += 1
                lane = self._lanes[subscription]
                some = deliveries if end - start == len(deliveries) else deliveries[start:end]
                lane.adapt()
                limit = self._limits.get(subscription)
                if limit is not None:
                    some = await self._permitted(lane, limit, some)
                lane.put(await self._quarantine.inspect(lane, some))
                start = end
        except BaseException:
            # A stop, or a broker that goes away meanwhile, is no attempt at what no lane has got yet.
            self._hand_back(deliveries[start:])
            raise

    def _hand_back(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self._lanes[delivery.subscription].settle(Outcome(delivery, Action.RELEASE))


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
