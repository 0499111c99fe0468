"""A claim on some subscriptions of the in-memory broker."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from carteiro.backends.memory.state import State
from carteiro.errors import NotConnected
from carteiro.message import Delivery, Outcome, Subscription


class MemoryConsumer:
    """The Consumer port. A waiting fetch is one future, and one timer if something is due later; it never polls."""

    def __init__(self, state: State, subscriptions: Sequence[Subscription]) -> None:
        self._state = state
        self._subscriptions = subscriptions
        self._waiters: set[asyncio.Future[None]] = set()
        self._closed = False
        self._timed = False
        """Whether a fetch waits for a time, too."""
        for subscription in subscriptions:
            state.queue(subscription)
            state.listeners[subscription].add(self._wake)

    async def fetch(self, room: Mapping[Subscription, int]) -> Sequence[Delivery]:
        """Raises NotConnected once the consumer is closed, also where it was waiting then.

        And BrokerError, with nothing claimed, where a group was removed.
        """
        # Let others run first: a fetch that never waits would starve them. Nothing is claimed before it, and
        # nothing is awaited after the claim, so that a cancelled fetch cannot lose what it took.
        await self._state.clock.sleep(0)
        while not self._closed:
            now = self._state.clock.time()
            queues = [(self._state.queue(one), limit) for one, limit in room.items()]
            deliveries = [delivery for queue, limit in queues for delivery in queue.claim(limit, now)]
            if deliveries:
                return deliveries
            dues = [due for queue, limit in queues if limit > 0 and (due := queue.next_due()) is not None]
            await self._wait(min(dues) - now if dues else None)
        raise NotConnected("this consumer is closed: it fetches no more")

    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[Delivery]:
        lost = [outcome.delivery for outcome in outcomes if not self._state.settle(outcome)]
        if self._timed:  # perhaps for the end of a lease that is settled now
            self._wake()
        return lost

    async def renew(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        return [delivery for delivery in deliveries if not self._state.renew(delivery)]

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for subscription in self._subscriptions:
            listeners = self._state.listeners[subscription]
            listeners.discard(self._wake)
            if not listeners:
                del self._state.listeners[subscription]
            if subscription.ephemeral:
                self._state.remove(subscription)
        self._wake()

    async def _wait(self, seconds: float | None) -> None:
        """Until something may have changed or, if `seconds` is given, until they have passed."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        timer = None if seconds is None else asyncio.create_task(self._wake_after(seconds))
        self._timed = timer is not None
        try:
            await waiter
        finally:
            self._timed = False
            self._waiters.discard(waiter)
            if timer is not None:
                timer.cancel()

    async def _wake_after(self, seconds: float) -> None:
        await self._state.clock.sleep(seconds)
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
