"""One subscription on a consumer's connection: a channel of its own, what was pushed there, and what is claimed.

The server pushes as much as the prefetch allows, and what it has pushed is claimed as far as it is concerned. So the
prefetch is set to what the subscription has room for; what waits here for longer than a moment is handed back; and what
is handed back is published anew with the attempts it had, since the server counts each time that it has to take a
message back: it cannot know what became of it. That is also why more room is a further consumer on the channel: to
cancel one and begin another would have the server take back, and count, what was on its way.

A lease is the channel. It ends with the connection, when the process dies or is silent for two heartbeats, and here,
for a delivery that is not renewed. What the channel does not know any more cannot be settled on it: that is the fence.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from carteiro.backends.rabbitmq import methods
from carteiro.backends.rabbitmq.channel import Channel, Content
from carteiro.backends.rabbitmq.link import Link
from carteiro.backends.rabbitmq.natives import RabbitQueue
from carteiro.backends.rabbitmq.publishing import Parcel
from carteiro.backends.rabbitmq.wire import ALSO_TO, Received, as_from, read_properties, to_message
from carteiro.errors import BrokerError
from carteiro.message import Delivery, Outcome, Subscription
from carteiro.topics import matches

_MOST: Final = 65_535
_STEADY: Final = 64
"""A prefetch under this is kept exactly, one over it grows by this factor."""
_GROWTH: Final = 4
_TOPICS: Final = 1000

Token = tuple[int, int]
"""The channel, as a number of the feed's own, and the delivery tag on it."""


class Effects:
    """What an outcome publishes before its ack; `left` are the indexes of what is not out yet."""

    def __init__(self, feed: Feed, outcome: Outcome, parcels: Sequence[Parcel]) -> None:
        self.feed = feed
        self.outcome = outcome
        self.parcels = parcels
        self.left = set(range(len(parcels)))


class Feed:
    def __init__(
        self, subscription: Subscription, queue: str, exchanges: frozenset[bytes], on_change: Callable[[], None]
    ) -> None:
        """`exchanges`: whose routing keys are topics. `on_change` is called when something has come or ended."""
        self.subscription = subscription
        self.queue = queue
        self.held: dict[int, float] = {}
        """Until when what was claimed is, by tag: loop time."""
        self.effects: dict[int, Effects] = {}
        """What of an outcome could not be published yet, so that the next try does not double the rest."""
        self.asked = 0.0
        """When it was last asked for something: loop time."""
        self.generation = 0
        self.uncounted: list[Delivery] = []
        """What came again and the server does not count, or soon no more: claimed, to be published anew, counted."""
        source = subscription.source
        self.stays = isinstance(source, RabbitQueue) and source.auto_delete
        """Whether its queue would go with its last consumer."""
        self._exchanges = exchanges
        self._on_change = on_change
        self._channel: Channel | None = None
        self._first_consumer, self._consumers = 1, 0  # the tags of the first and the last that there are
        self._prefetch = 0
        self._newest = 0  # the newest delivery's tag
        self._earlier = 0  # how many are unsettled that an earlier consumer brought, of those up to this tag
        self._earlier_until = 0
        self._buffer: deque[Content] = deque()
        self._arrivals: deque[tuple[int, float]] = deque()  # what came together: its newest tag, and when
        self._order: deque[int] = deque()  # what is not acked yet, by tag, and some that is
        self._acked: set[int] = set()  # those of these that are
        self._topics: dict[bytes, str] = {}
        self._changing = asyncio.Lock()  # whoever has the server push more, or no more
        self._error: BrokerError | None = None  # why it brings no more
        self._consuming: asyncio.Future[Any] | None = None  # the newest consumer
        self._withheld: list[int] | None = None  # what is to be acked later, while it is

    def __bool__(self) -> bool:
        """Whether something waits here."""
        return bool(self._buffer)

    @property
    def ready(self) -> bool:
        """Whether the server pushes what comes."""
        return self._prefetch > 0

    @property
    def busy(self) -> bool:
        return bool(self._buffer or self.held)

    # -- what comes ------------------------------------------------------------------------------------------------

    def needs(self, room: int) -> bool:
        """Whether the server must be told that there is more, or less, room."""
        return not self._prefetch or min(_MOST, len(self.held) + room) > self._prefetch + self._earlier

    async def open(self, link: Link, room: int) -> None:
        """Have the server push as much as there is room for. Raises Refused where there is no such queue."""
        async with self._changing:
            await self._open(link, room)

    async def _open(self, link: Link, room: int) -> None:
        wanted = min(_MOST, len(self.held) + room)
        if self._prefetch and wanted > _STEADY:
            wanted = min(_MOST, max(wanted, _GROWTH * self._prefetch))
        if self._channel is None or self._channel.error is not None:
            self._start_anew(await link.channel())
        channel = self._channel
        assert channel is not None
        if channel.error is not None:  # it ended before it was ours, so that nobody has told us
            raise channel.error
        if not self._prefetch:  # what earlier consumers have left unsettled is not counted against a new one's prefetch
            self._earlier = len(self.held) + len(self._buffer)
            self._earlier_until = self._newest
        more = max(1, wanted - self._prefetch - self._earlier)
        self._prefetch += more
        self._consumers += 1
        channel.ask(methods.qos(more))
        self._consuming = channel.ask(methods.consume(self.queue, str(self._consumers)))
        await channel.answered(self._consuming)

    async def stop(self) -> None:
        """Have the server push no more, and return when all that it has pushed is here.

        What is on its way when a consumer is cancelled the server takes back, and counts as an attempt. It pushes for
        each ack: so none is sent meanwhile, and the answer to a get comes when the queue has done what the acks before
        it ask for. What is published in that last moment, to a queue that is empty, may still lose an attempt.
        """
        async with self._changing:
            channel, generation = self._channel, self.generation
            if not self._prefetch or channel is None:
                return
            withheld: list[int] = []
            self._withheld = withheld
            try:
                if self._consuming is not None:  # whose answer a get's may overtake
                    await channel.answered(self._consuming)
                if self.subscription.source is None:
                    got = await channel.call(methods.get(self.queue))
                    if got is not None:
                        self._insert(got)
                    await self.probe()
                self._prefetch = 0
                for tag in range(self._first_consumer, self._consumers + 1):
                    channel.say(methods.cancel_nowait(str(tag)))
                self._first_consumer = self._consumers + 1
                await self.probe()
            finally:
                self._withheld = None
                if generation == self.generation:
                    self.ack(withheld)
                self._on_change()

    def _insert(self, got: Content) -> None:
        """It may have been overtaken by what was pushed after it."""
        tag = got[0]
        assert self._channel is not None
        if tag > self._newest:
            self._newest = tag
            self._arrivals.append((tag, self._channel.link.heard))
        self._buffer = deque(sorted((*self._buffer, got)))
        self._order = deque(sorted((*self._order, tag)))

    def _start_anew(self, channel: Channel) -> None:
        self.generation += 1
        self._error = None
        self._forget()
        self._first_consumer, self._consumers = 1, 0
        self._channel = channel
        channel.on_arrival = self._arrived
        channel.on_cancel = self.drop
        channel.on_closed = self._closed

    def _forget(self) -> None:
        self._prefetch = 0
        self.held.clear()
        self.effects.clear()
        self.uncounted.clear()
        self._earlier = self._earlier_until = self._newest = 0
        self._buffer.clear()
        self._arrivals.clear()
        self._order.clear()
        self._acked.clear()

    def _arrived(self) -> None:
        assert self._channel is not None
        came, self._channel.inbox = self._channel.inbox, []
        if not self._buffer:
            self._arrivals.clear()
        self._arrivals.append((came[-1][0], self._channel.link.heard))
        self._buffer.extend(came)
        self._order.extend(content[0] for content in came)
        self._newest = came[-1][0]
        self._on_change()

    def drop(self) -> None:
        """Its queue was deleted, and with it all that was claimed of it."""
        self.generation += 1
        self._forget()
        if self._channel is not None:
            self._channel.retire()  # or its consumers would be those of a queue that is made again under the name
        self._on_change()

    def _closed(self, error: BrokerError) -> None:
        self.generation += 1
        self._error = error
        self._forget()
        self._on_change()

    def take_error(self) -> BrokerError | None:
        """Why it brings no more; said once."""
        error, self._error = self._error, None
        return error

    # -- what is claimed --------------------------------------------------------------------------------------------

    def take(self, room: int, until: float, now: float) -> list[Delivery]:
        """Claim up to so many until then, a loop time; `now` is the wall's."""
        subscription, generation = self.subscription, self.generation
        native = subscription.source is not None
        taken: list[Delivery] = []
        for _ in range(min(room, len(self._buffer))):
            tag, again, exchange, key, properties, body = self._buffer.popleft()
            received = read_properties(properties)
            counted = not again or received.is_counted
            if again:
                received = received.redelivered()
            message = to_message(received, self._topic(exchange, key, received), body, now)
            if native:
                message = as_from(subscription.topic, received, message, exchange, key)
            delivery = Delivery(subscription, message, (generation, tag), received.failures)
            if counted:
                self.held[tag] = until
                taken.append(delivery)
            else:
                self.held[tag] = math.inf
                self.uncounted.append(delivery)
        return taken

    def take_uncounted(self) -> list[Delivery]:
        uncounted, self.uncounted = self.uncounted, []
        return uncounted

    def waits_since(self) -> float:
        """Since when the first one that waits here does: loop time."""
        oldest = self._buffer[0][0]
        while self._arrivals[0][0] < oldest:
            self._arrivals.popleft()
        return self._arrivals[0][1]

    def drop_waiting(self) -> list[Delivery]:
        """Claim all that waits here, in order to hand it back."""
        return self.take(len(self._buffer), math.inf, 0.0) + self.take_uncounted()

    def holds(self, token: Token) -> bool:
        return token[0] == self.generation and token[1] in self.held

    def hold(self, token: Token, seconds: float = math.inf) -> None:
        """It does not lapse for so long."""
        if self.holds(token) and self._channel is not None:
            self.held[token[1]] = self._channel.link.loop.time() + seconds

    def lapse(self, now: float) -> None:
        """Give back what was not renewed in time."""
        self.give_back([tag for tag, until in self.held.items() if until <= now])

    def give_back(self, tags: Iterable[int]) -> None:
        """Have the server deliver it again, to anyone: that is an attempt."""
        gone = list(tags)
        if gone and self._channel is not None:
            self._channel.write(b"".join(self._channel.give_back(tag) for tag in gone))
            self._forget_tags(gone)

    async def probe(self) -> None:
        """Return when the server has answered, or is known to be gone."""
        if self._channel is not None:
            await self._channel.call(methods.qos(self._prefetch or 1))

    def ack(self, tags: Iterable[int]) -> None:
        """Tell the server that it may forget them: in runs, where they line up."""
        ready = set(tags)
        if not ready or self._channel is None:
            return
        if self._withheld is not None:
            self._withheld += ready
            return
        order, acked, last = self._order, self._acked, 0
        while order:
            tag = order[0]
            if tag in ready:
                ready.discard(tag)
                last = tag
                self._end(tag)
            elif tag in acked:
                acked.discard(tag)
            else:
                break
            order.popleft()
        channel = self._channel
        frames = [channel.ack(last, multiple=True)] if last else []
        frames += (channel.ack(tag) for tag in sorted(ready))
        channel.write(b"".join(frames))
        self._forget_tags(ready)

    def _forget_tags(self, tags: Iterable[int]) -> None:
        for tag in tags:
            self._end(tag)
            self._acked.add(tag)

    def _end(self, tag: int) -> None:
        self.held.pop(tag, None)
        self.effects.pop(tag, None)
        if tag <= self._earlier_until:
            self._earlier -= 1

    def _topic(self, exchange: bytes, key: bytes, received: Received) -> str:
        """By its routing key, if it was published to a topic: a queue's own name is none."""
        if exchange not in self._exchanges:
            return self.subscription.topic
        topic = self._topics.get(key)
        if topic is None:
            topic = key.decode("utf-8", "replace")
            if not matches(self.subscription.topic, topic):  # it came by another name
                others = received.own.get(ALSO_TO) or ()
                return next((one for one in others if matches(self.subscription.topic, one)), topic)
            if len(self._topics) < _TOPICS:
                self._topics[key] = topic
        return topic

    # -- its end ---------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
