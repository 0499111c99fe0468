"""The Consumer port on RabbitMQ: pushed deliveries, handed out as they are asked for.

It has a connection of its own, with a heartbeat of half the shortest lease: a process that is silent for a whole lease
has lost what it had claimed. A connection that breaks is made again by the next fetch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Final

from carteiro.backends.rabbitmq import methods, topology
from carteiro.backends.rabbitmq.copying import Copier
from carteiro.backends.rabbitmq.feed import Effects, Feed
from carteiro.backends.rabbitmq.link import Link
from carteiro.backends.rabbitmq.mishaps import NOT_FOUND, Refused
from carteiro.backends.rabbitmq.natives import RabbitQueue, native_queue
from carteiro.backends.rabbitmq.publishing import Publisher, Unconfirmed
from carteiro.backends.rabbitmq.server import Server, is_exclusive
from carteiro.backends.rabbitmq.settling import again, dead, emitted, handed_back
from carteiro.errors import BrokerError, BrokerUnavailable
from carteiro.message import Action, Delivery, Outcome, Subscription
from carteiro.ports.broker import Unrouted

log = logging.getLogger("carteiro.worker")

_IDLE: Final = 0.2
"""Seconds without being asked for, after which what waits here is handed back to the server."""
_STALE: Final = 1.0
"""Seconds after which it is in any case: its lane has become slower than the prefetch was set for."""
_COUNTED_AFTER: Final = 0.2
"""Seconds until what is published anew to be counted comes: the ack is there before. A message that kills its worker at
once would be doubled each time."""


class RabbitConsumer:
    def __init__(
        self,
        server: Server,
        publisher: Publisher,
        subscriptions: Sequence[Subscription],
        unrouted: Unrouted,
        on_closed: Callable[[RabbitConsumer], None],
    ) -> None:
        names = server.names
        exchanges = frozenset(exchange.encode() for exchange in names.exchanges())
        self._server = server
        self._publisher = publisher
        self._unrouted = unrouted
        self._on_closed = on_closed
        self._feeds = {one: Feed(one, names.queue(one), exchanges, self._changed) for one in subscriptions}
        lease = min((one.lease for one in subscriptions), default=30.0)
        self._copiers = {
            one: Copier(server, publisher, one, one.source, self._changed)
            for one in subscriptions
            if isinstance(one.source, RabbitQueue) and one.source.is_stream
        }
        self._heartbeat = min(server.address.heartbeat, lease / 2)
        self._tick = min(_IDLE, lease / 4)
        self._link: Link | None = None
        self._news: asyncio.Future[None] | None = None
        self._asking: Collection[Feed] = ()
        self._preparing: asyncio.Task[None] | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self._handing_back: set[asyncio.Task[None]] = set()
        self._closed = False

    # -- fetch -----------------------------------------------------------------------------------------------------

    async def fetch(self, room: Mapping[Subscription, int]) -> Sequence[Delivery]:
        wanted = {self._feeds[subscription]: count for subscription, count in room.items() if count > 0}
        self._asking = wanted.keys()
        try:
            while not self._closed:
                self._tell_of_losses()
                self._note_asked(wanted)
                ready = all(feed.ready for feed in wanted) and all(one.runs for one in self._copiers.values())
                if ready and (taken := self._take(wanted)):
                    return taken
                if not ready or any(feed.needs(count) for feed, count in wanted.items()):
                    await self._prepare(wanted)
                    continue
                self._news = asyncio.get_running_loop().create_future()
                await self._news
            return ()
        finally:
            self._news, self._asking = None, ()
            self._note_asked(wanted)

    def _tell_of_losses(self) -> None:
        """Raises BrokerUnavailable once for a connection, or a channel, that has ended; the next fetch makes another.

        That is the caller's pause: a server that lets us in and throws us out again is not asked without end.
        """
        errors = [error for feed in self._feeds.values() if (error := feed.take_error()) is not None]
        link = self._link
        if link is not None and link.lost:
            self._link = None
            raise link.loss
        if errors:
            raise BrokerUnavailable(f"what was claimed comes again: {errors[0]}")

    def _take(self, wanted: Mapping[Feed, int]) -> list[Delivery]:
        loop_time, now = asyncio.get_running_loop().time(), self._server.clock.time()
        taken: list[Delivery] = []
        for feed, count in wanted.items():
            if feed:
                taken += feed.take(count, loop_time + feed.subscription.lease, now)
                if feed.uncounted:
                    self._start(self._count(feed))
        return taken

    def _note_asked(self, wanted: Mapping[Feed, int]) -> None:
        now = asyncio.get_running_loop().time()
        for feed in wanted:
            feed.asked = now
        self._watch()

    async def _prepare(self, wanted: Mapping[Feed, int]) -> None:
        """Have the server push what there is room for. A fetch that is cancelled leaves this to end by itself."""
        if self._preparing is None or self._preparing.done():
            self._preparing = asyncio.create_task(self._open(dict(wanted)))
            self._preparing.add_done_callback(_looked_at)
        try:
            await asyncio.shield(self._preparing)
        except BrokerUnavailable:
            if self._link is not None and self._link.lost:  # and it is told of by that
                self._link = None
                for feed in self._feeds.values():
                    feed.take_error()
            raise

    async def _open(self, wanted: Mapping[Feed, int]) -> None:
        if self._link is None or self._link.lost:
            link = self._server.new_link("consuming", self._heartbeat)
            await link.open()
            self._link = link
            await self._server.make_again_what_is_in_memory(link)  # it may be that nobody publishes for long
        for copier in self._copiers.values():
            copier.start(self._link)
        for feed, count in wanted.items():
            if not feed.needs(count):
                continue
            if native_queue(feed.subscription.topic) is not None and not self._server.knows(feed.subscription):
                raise _gone(feed.subscription)  # the queue is there still
            try:
                await feed.open(self._link, count)
            except Refused as error:
                if error.code != NOT_FOUND:
                    raise
                await self._make_again(feed.subscription)
                await feed.open(self._link, count)

    async def _make_again(self, subscription: Subscription) -> None:
        """Its queue is gone: with the group, or behind our back, or with the connection or process it was for."""
        if not (subscription.ephemeral or is_exclusive(subscription)):
            listing = await self._server.register.read()
            if (subscription.topic, subscription.group) not in listing.groups:
                self._server.forget(subscription)
                raise _gone(subscription)
            log.error("the queue of %s was deleted, with all that was in it: it is made again", subscription)
            await self._server.until_noticed()
        link = self._link if is_exclusive(subscription) else None
        await self._server.run(topology.queue(self._server.names, subscription), link)

    def _changed(self) -> None:
        """Something has come, or has ended."""
        self._watch()
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    # -- what goes back by itself -----------------------------------------------------------------------------------

    def _watch(self) -> None:
        """See to it that time is kept while anything is held."""
        if self._ticking is None and not self._closed and any(feed.busy for feed in self._feeds.values()):
            self._ticking = asyncio.get_running_loop().call_later(self._tick, self._look)

    def _look(self) -> None:
        self._ticking = None
        now = asyncio.get_running_loop().time()
        for feed in self._feeds.values():
            feed.lapse(now)
            if not feed or feed.stays:
                continue
            old = now - feed.waits_since() > min(_STALE, feed.subscription.lease / 3)
            if old or (feed not in self._asking and now - feed.asked > _IDLE):
                self._start(self._hand_back(feed))
        self._watch()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._handing_back.add(task)
        task.add_done_callback(self._handing_back.discard)

    async def _hand_back(self, feed: Feed) -> None:
        """Have it bring no more, and publish anew what waits here, for others to take."""
        with contextlib.suppress(BrokerError):
            await feed.stop()
        deliveries = feed.drop_waiting()
        if not deliveries:
            return
        try:
            await self._publisher.send([handed_back(feed.queue, delivery) for delivery in deliveries])
        except BrokerError as error:
            log.warning("%d messages of %s go back by a lost attempt: %s", len(deliveries), feed.subscription, error)
            feed.give_back(delivery.token[1] for delivery in deliveries if feed.holds(delivery.token))
            return
        feed.ack(delivery.token[1] for delivery in deliveries if feed.holds(delivery.token))

    async def _count(self, feed: Feed) -> None:
        """Publish anew what came again of a queue that does not count that, with the attempt that was lost."""
        deliveries = feed.take_uncounted()
        try:
            await self._publisher.send([handed_back(feed.queue, one, _COUNTED_AFTER) for one in deliveries])
        except BrokerError as error:
            log.warning("%d messages of %s wait to be tried again: %s", len(deliveries), feed.subscription, error)
            for delivery in deliveries:
                feed.hold(delivery.token, feed.subscription.lease)
            return
        feed.ack(delivery.token[1] for delivery in deliveries if feed.holds(delivery.token))

    # -- settle and renew ------------------------------------------------------------------------------------------

    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[Delivery]:
        lost: list[Delivery] = []
        done: dict[Feed, list[int]] = {}
        sending: list[tuple[Feed, Outcome]] = []
        for outcome in outcomes:
            delivery = outcome.delivery
            feed = self._feeds.get(delivery.subscription)
            if feed is None or not feed.holds(delivery.token):
                lost.append(delivery)
            elif outcome.action is Action.ACK and not outcome.emits:
                done.setdefault(feed, []).append(delivery.token[1])
            else:
                sending.append((feed, outcome))
        for feed, tags in done.items():
            feed.ack(tags)
        await self._server.make_targets(emit for _, outcome in sending for emit in outcome.emits)
        effects = [await self._effects(feed, outcome) for feed, outcome in sending]
        if effects:
            lost += await self._apply(effects)
        return lost

    async def _effects(self, feed: Feed, outcome: Outcome) -> Effects:
        """What it sends; if that was tried before, what is left of it."""
        known = feed.effects.get(outcome.delivery.token[1])
        if known is not None and known.outcome is outcome:
            return known
        parcels = [emitted(self._server, outcome.delivery, emit) for emit in outcome.emits]
        if outcome.action in (Action.RETRY, Action.RELEASE):
            parcels.append(again(self._server, feed.queue, outcome))
        elif outcome.action is Action.DEAD:
            parcels += await dead(self._server, outcome)
        return Effects(feed, outcome, parcels)

    async def _apply(self, effects: Sequence[Effects]) -> list[Delivery]:
        """Publish, then ack. Returns those whose lease was lost meanwhile."""
        await self._make_sure(effects)
        held = [one for one in effects if one.feed.holds(one.outcome.delivery.token)]
        owners = [(one, index) for one in held for index in one.left]
        trouble: BrokerError | None = None
        left: frozenset[int] = frozenset()
        unrouted: frozenset[int] = frozenset()
        for one in held:
            one.feed.hold(one.outcome.delivery.token)
        try:
            if owners:
                unrouted = await self._publisher.send([one.parcels[index] for one, index in owners])
        except Unconfirmed as error:
            trouble, left = error, error.left
        except BrokerError as error:
            trouble, left = error, frozenset(range(len(owners)))
        for number, (one, index) in enumerate(owners):
            if number not in left:
                one.left.discard(index)
            if number in unrouted:
                trouble = self._returned(one, index) or trouble
        lost = self._conclude(effects)
        if trouble is not None:
            raise trouble
        return lost

    def _conclude(self, effects: Sequence[Effects]) -> list[Delivery]:
        lost: list[Delivery] = []
        done: dict[Feed, list[int]] = {}
        for one in effects:
            delivery = one.outcome.delivery
            tag = delivery.token[1]
            if not one.feed.holds(delivery.token):
                lost.append(delivery)
            elif one.left:
                one.feed.effects[tag] = one
                one.feed.hold(delivery.token, one.feed.subscription.lease)
            else:
                done.setdefault(one.feed, []).append(tag)
        for feed, tags in done.items():
            feed.ack(tags)
        return lost

    def _returned(self, one: Effects, index: int) -> BrokerError | None:
        """No queue got it; the trouble, if one should have."""
        emits = one.outcome.emits
        if index < len(emits) and isinstance(emits[index].target, RabbitQueue):
            one.left.add(index)
            self._server.forget_made()
            return BrokerUnavailable(f"the queue of `{emits[index].topic}` was deleted; it is made again")
        if index < len(emits):
            self._unrouted.note(emits[index])
        elif one.outcome.action is Action.DEAD:
            one.left.add(index)
            self._server.forget_made()
            return BrokerUnavailable("a queue of dead letters was deleted; it is made again")
        else:
            log.error("%s was removed while a message of its was handled", one.outcome.delivery.subscription)
        return None

    async def _make_sure(self, effects: Sequence[Effects]) -> None:
        """That the leases still hold, if the server may have given us up: we may have been frozen."""
        link = self._link
        if link is not None and not link.lost and link.is_doubtful:
            with contextlib.suppress(BrokerError):
                await next(iter(effects)).feed.probe()
                link.trust()

    async def renew(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """While the connection lives the server keeps them for us; a renewal is for our own clock."""
        lost: list[Delivery] = []
        for delivery in deliveries:
            feed = self._feeds.get(delivery.subscription)
            if feed is not None and feed.holds(delivery.token):
                feed.hold(delivery.token, feed.subscription.lease)
            else:
                lost.append(delivery)
        return lost

    def drop(self, subscription: Subscription) -> None:
        """Its group was removed."""
        feed = self._feeds.get(subscription)
        if feed is not None:
            feed.drop()

    # -- its end ---------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """What is claimed goes back at once: its lease is the connection."""
        if self._closed:
            return
        self._closed = True
        if self._ticking is not None:
            self._ticking.cancel()
        self._changed()
        if self._preparing is not None:
            self._preparing.cancel()
            await asyncio.wait([self._preparing])
        for copier in self._copiers.values():
            await copier.stop()
        passing = [feed for feed in self._feeds.values() if not feed.stays]
        with contextlib.suppress(BrokerError):
            await asyncio.gather(*self._handing_back, *(self._hand_back(feed) for feed in passing))
            await self._remove_ephemeral()
        if self._link is not None:
            await self._link.close()
        self._on_closed(self)

    async def _remove_ephemeral(self) -> None:
        gone = [feed.queue for feed in self._feeds.values() if feed.subscription.ephemeral]
        gone += [self._server.names.position(one) for one in self._copiers if one.ephemeral]
        await self._server.run(methods.queue_delete(queue) for queue in gone)


def _gone(subscription: Subscription) -> BrokerError:
    return BrokerError(f"{subscription} is not declared, or was removed: declare it, or restart its workers")


def _looked_at(task: asyncio.Task[None]) -> None:
    """Nobody waits for it where the fetch that began it was cancelled; the next one meets the same trouble."""
    if not task.cancelled():
        task.exception()
