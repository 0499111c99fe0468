"""The port that moves messages: what a backend must supply, and what it may.

The protocol in words. A *publish* fans a message out to every subscription that is declared at that moment and whose
topic or pattern matches. A *fetch* claims deliveries: from then on they are invisible to others until their lease ends,
their attempt is one higher, and they carry a token that is newer than any before. *Settle* and *renew* act only where
the token is still the newest (the fence); those for which it is not are returned, and nothing of them is applied.
A lease that ends without a settle makes the message visible again by itself: that is the whole of crash recovery.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Protocol, runtime_checkable

import msgspec

from carteiro.message import DeadLetter, Delivery, Message, Outcome, Outgoing, Retention, Subscription
from carteiro.ports.clock import Clock
from carteiro.ports.features import Features
from carteiro.ports.store import Store

log = logging.getLogger("carteiro.publisher")


class Unrouted:
    """What was published or emitted and no group gets, counted by topic, with one warning a topic."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def note(self, message: Outgoing) -> None:
        """A reply that nobody waits for any more is none of these, and neither is what goes to others than groups."""
        topic = message.topic
        if topic.startswith("$") or message.target is not None:
            return
        self.counts[topic] = self.counts.get(topic, 0) + 1
        if self.counts[topic] == 1:
            log.warning("no group gets `%s`: what is published to it is gone (said once a topic)", topic)


class Consumer(Protocol):
    """A claim on some subscriptions. One serves many; all calls of one consumer come from one event loop."""

    async def fetch(self, room: Mapping[Subscription, int]) -> Sequence[Delivery]:
        """Claim up to `room` deliveries of each subscription; wait until there is at least one.

        A cancelled fetch loses nothing: what it had claimed comes with the next one. Order within one subscription is
        the order of becoming visible. Raises BrokerUnavailable while the broker is away.
        """
        ...

    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[Delivery]:
        """Apply each outcome whole, in one commit where the backend can. Returns those whose lease was lost."""
        ...

    async def renew(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Make each lease last its full length from now. Returns those whose lease was lost."""
        ...

    async def close(self) -> None:
        """Stop fetching; remove what is ephemeral. What is claimed and unsettled stays claimed until its lease ends."""
        ...


class Broker(Protocol):
    """One system that moves messages."""

    @property
    def features(self) -> Features: ...

    @property
    def store(self) -> Store | None:
        """The store that shares this broker's commit, if there is one."""
        ...

    @property
    def unrouted(self) -> Unrouted:
        """The backend notes here what outcomes emit and no group gets; of what is published the caller is told."""
        ...

    async def connect(self) -> None:
        """Raises BrokerUnavailable, naming the cause and the way out."""
        ...

    async def close(self) -> None: ...

    async def declare(self, subscriptions: Sequence[Subscription], retentions: Sequence[Retention] = ()) -> None:
        """Make them exist, durably. Declaring again is harmless; changed options take effect."""
        ...

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        """Returns when they are safe: all of them or, where it raises, none. The result lists those no group gets."""
        ...

    def consume(self, subscriptions: Sequence[Subscription]) -> Consumer:
        """A consumer of subscriptions that were declared.

        For one that was not, or was removed, BrokerError is raised: here, or by the fetch that asks for it.
        """
        ...


class GroupStatus(msgspec.Struct, frozen=True):
    """One subscription's counts; None is what the broker cannot tell.

    `oldest` is the age in seconds of the oldest message not yet done, None also where there is none.
    """

    topic: str
    group: str
    waiting: int
    """Visible now."""
    delayed: int | None
    """Waiting for its time: delayed, or behind another of its key."""
    retrying: int | None
    """Waiting for a retry."""
    in_flight: int | None
    dead: int
    oldest: float | None
    consumers: int
    """As the broker counts them: at least one for each process that consumes."""

    @property
    def left(self) -> int:
        """How many are neither done nor dead, as far as the broker tells."""
        return self.waiting + (self.delayed or 0) + (self.retrying or 0) + (self.in_flight or 0)


@runtime_checkable
class Inspector(Protocol):
    """What an operator sees and does. Optional."""

    async def groups(self) -> Sequence[GroupStatus]: ...

    async def peek(self, topic: str, group: str, limit: int = 10) -> Sequence[Message]:
        """The next messages of a group, without claiming them. Raises UnsupportedFeature where there is no way to.

        First what can be claimed and what waits for its time, by that time; last what is behind another of its key, in
        the order published. What is in flight is not among them.
        """
        ...

    async def dead_letters(
        self, queue: str | None = None, *, ids: Sequence[str] | None = None, limit: int | None = None
    ) -> Sequence[DeadLetter]:
        """Oldest first; of every queue when `queue` is None."""
        ...

    async def replay(self, queue: str, *, ids: Sequence[str] | None = None, body: bytes | None = None) -> int:
        """Send dead letters (all of the queue when `ids` is None) back to the group that failed, and to no other.

        They start at attempt 1, with `body` in place of their own if given. Returns how many.
        """
        ...

    async def purge_dead(
        self, queue: str, *, ids: Sequence[str] | None = None, older_than: timedelta | None = None
    ) -> int: ...

    async def purge(self, topic: str, group: str) -> int:
        """Drop what waits for a group; what is in flight stays."""
        ...

    async def remove_group(self, topic: str, group: str) -> None:
        """The group receives nothing from now on, and what waited for it is gone."""
        ...

    async def rewind(self, topic: str, group: str, to: float) -> int:
        """Deliver again what was published to a retained topic since `to` (seconds since the epoch); returns how many.

        It comes in the order published. What still waits from then on is not doubled. Raises BrokerError where the
        topic has no retention, and UnsupportedFeature where no topic can.
        """
        ...


class Check(msgspec.Struct, frozen=True):
    """One finding of `doctor`: what was looked at, how it stands, and what to do."""

    name: str
    status: str
    """`ok`, `warning` or `error`."""
    detail: str


class Backend(Protocol):
    """One system: its broker, its store if it has one, and its own look at its health."""

    @property
    def broker(self) -> Broker: ...

    @property
    def store(self) -> Store | None: ...

    async def doctor(self) -> Sequence[Check]: ...


class OpenBackend(Protocol):
    """What an entry point in the group `carteiro.backends` names; the entry point's name is the URL's scheme."""

    def __call__(self, url: str, *, clock: Clock) -> Backend: ...
