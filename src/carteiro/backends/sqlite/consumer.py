"""A claim on some subscriptions of the file."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from carteiro.backends.sqlite import claims
from carteiro.backends.sqlite.database import Database, Fetch
from carteiro.backends.sqlite.declaring import remove
from carteiro.backends.sqlite.session import Session
from carteiro.errors import NotConnected
from carteiro.message import Action, Delivery, Outcome, Subscription, new_id
from carteiro.ports.broker import Unrouted
from carteiro.ports.leftover import Leftover


class SqliteConsumer:
    """The Consumer port."""

    def __init__(self, database: Database, subscriptions: Sequence[Subscription], unrouted: Unrouted) -> None:
        self._database = database
        self._unrouted = unrouted
        self._subscriptions = subscriptions
        self._id = new_id()
        self._leftover = Leftover()
        self._fetches: set[Fetch] = set()
        self.closed = False
        database.keeper.join(self._id, subscriptions)
        database.wake()

    async def fetch(self, room: Mapping[Subscription, int]) -> Sequence[Delivery]:
        """Raises NotConnected once the consumer is closed, also where it was waiting then."""
        if self.closed:
            raise self._error()
        if self._leftover and (deliveries := await self._take_leftover(room)):
            return deliveries
        fetch = Fetch(room, self._keep)
        self._database.put(fetch)
        self._fetches.add(fetch)
        try:
            return await fetch.future
        except asyncio.CancelledError:
            # The task may be cancelled between the answer and its waking: then the future has its result.
            if not fetch.future.cancelled() and fetch.future.exception() is None:
                self._keep(fetch.future.result())
            raise
        finally:
            self._fetches.discard(fetch)

    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[Delivery]:
        lost, unrouted = await self._database.write(lambda session: claims.settle(session, outcomes))
        for message in unrouted:
            self._unrouted.note(message)
        return lost

    async def renew(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        return await self._database.write(lambda session: claims.renew(session, deliveries))

    async def close(self) -> None:
        """What no handler has seen is handed back at once, and does not count as an attempt."""
        if self.closed:
            return
        self.closed = True
        for fetch in self._fetches:
            if not fetch.future.done():
                fetch.future.set_exception(self._error())
        keeper = self._database.keeper
        keeper.leave(self._id)
        ephemeral = [subscription for subscription in self._subscriptions if subscription.ephemeral]
        for subscription in ephemeral:
            keeper.drop(subscription)

        def leave(session: Session) -> None:
            session.run("remove_consumer", (self._id,))
            for subscription in ephemeral:
                remove(session, subscription.topic, subscription.group)

        await self._database.write(leave)
        # Only now: a fetch that was cancelled may have been served in the transaction before.
        await self._hand_back(self._leftover.take_all())

    def _keep(self, deliveries: Sequence[Delivery]) -> None:
        self._leftover.add(deliveries, self._database.clock.time())

    async def _take_leftover(self, room: Mapping[Subscription, int]) -> list[Delivery]:
        await self._hand_back(self._leftover.take_stale(self._database.clock.time()))
        return self._leftover.take(room, self._database.clock.time())

    async def _hand_back(self, unseen: Sequence[Delivery]) -> None:
        if unseen:
            await self.settle([Outcome(delivery, Action.RELEASE) for delivery in unseen])

    def _error(self) -> NotConnected:
        return NotConnected("this consumer is closed: it fetches no more")
