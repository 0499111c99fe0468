"""What travels: messages, deliveries, and how a delivery ends.

Every type here is a frozen value. A *message* is what a publisher sent; a *delivery* is one attempt
to handle one message for one group; an *outcome* is how that attempt ended. Backends make deliveries and
consume outcomes; they never look inside a body.
"""

from __future__ import annotations

import enum
import itertools
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, ClassVar, Final, Protocol, runtime_checkable

import msgspec

NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})

# Header names on the wire. They are the documented contract with clients that know nothing of carteiro.
TYPE: Final = "type"
CONTENT_TYPE: Final = "content-type"
REPLY_TO: Final = "reply-to"
EXPIRES_AT: Final = "expires-at"
"""Seconds since the epoch, as decimal text. A message that starts later than this is dropped."""
ERROR: Final = "error"
"""Set on a reply whose request failed: the error, as `Type: text`."""
DEAD_REASON: Final = "dead-reason"
"""With the next three, set on a message that is published to a dead letter queue: why it is dead."""
DEAD_TOPIC: Final = "dead-topic"
DEAD_GROUP: Final = "dead-group"
DEAD_ATTEMPTS: Final = "dead-attempts"


# What travels is not tracked by the garbage collector: made by the thousand and without cycles, it cost SQLite's thread
# half of the time in which it makes deliveries.


class Message(msgspec.Struct, frozen=True, eq=False, array_like=True, gc=False):
    """A message as its handler sees it: the body as bytes, and its metadata.

    A backend may keep it as an array of its fields, in this order. `published` is the broker's time in seconds since
    the epoch; `published_at` the same as an aware datetime. `attempt` counts from 1 and includes attempts whose worker
    died.
    """

    id: str
    topic: str
    body: bytes
    key: str | None
    headers: Mapping[str, str]
    correlation_id: str
    published: float
    attempt: int = 1

    @property
    def published_at(self) -> datetime:
        return datetime.fromtimestamp(self.published, UTC)

    @property
    def type(self) -> str | None:
        return self.headers.get(TYPE)


class Outgoing(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A message on its way to the broker.

    `delay` is in seconds from the broker's now. `dedupe`, in seconds, makes the broker drop it when the same id
    was published to the same topic within that window.
    """

    id: str
    topic: str
    body: bytes
    key: str | None
    headers: Mapping[str, str]
    correlation_id: str
    delay: float = 0.0
    dedupe: float | None = None
    target: Native | None = None
    """Where it goes, if not to the groups of its topic; the topic is then this object's."""
    broker: str | None = None
    """Which of an app's brokers it goes to, by the app's name for it; None for what stays where it was caused."""


class Subscription(msgspec.Struct, frozen=True):
    """One (topic or pattern, group). Equal and hashed by these two alone; the rest are its options.

    `topic` is in the broker's form: `*` for one word, `#` for any number. `group` of an `ephemeral` subscription is
    unique to its process and goes with it. `start` says where a new group begins on a retained topic: `"latest"`,
    `"earliest"` or seconds since the epoch. `lease` is in seconds.
    """

    topic: str
    group: str
    ordered: bool = False
    ephemeral: bool = False
    lease: float = 30.0
    start: str | float = "latest"
    source: Native | None = None
    """Where its messages come from, if not from who publishes to its topic; the topic is then this object's."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Subscription) and (self.topic, self.group) == (other.topic, other.group)

    def __hash__(self) -> int:
        return hash((self.topic, self.group))

    def __str__(self) -> str:
        return f"{self.topic} [{self.group}]"


@runtime_checkable
class Native(Protocol):
    """An object of one system in place of a topic's name, such as a Redis list: a frozen value, equal by what it says.

    What comes from it is a message of its `topic`, for whatever else there is: dead letters, the command line, tests.
    """

    def __hash__(self) -> int: ...

    backend: ClassVar[str]
    """The system: `Features.backend` of those brokers that can reach it."""

    @property
    def topic(self) -> str:
        """The topic of the messages that come from it."""
        ...

    def default_group(self, app: str) -> str | None:
        """The group of a subscriber that names none, in the app of this name; None is a broadcast."""
        ...

    def check_subscription(self, subscription: Subscription) -> None:
        """Raises ConfigurationError for what cannot be subscribed to it so."""
        ...

    def check_outgoing(self, message: Outgoing) -> None:
        """Raises UnsupportedFeature for what it cannot carry, with the way out."""
        ...

    def received(self, message: Outgoing) -> Outgoing | None:
        """A message that was published to another object of its system, as it comes from here; None if it does not.

        In tests, where there is no such system: its own brokers know without asking.
        """
        ...


class Retention(msgspec.Struct, frozen=True):
    """A topic whose messages are kept for `seconds` after they were published, handled or not."""

    topic: str
    seconds: float


class Failure(msgspec.Struct, frozen=True):
    """One failed attempt: its number, when it failed (seconds since the epoch), and how."""

    attempt: int
    at: float
    error: str
    traceback: str = ""


class Delivery(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One attempt to handle one message for one subscription.

    `token` is the fence: the broker settles and renews only for the delivery that holds the newest one. Its type is
    the backend's own. `history` holds the failures so far; an attempt that is in neither was lost with its worker.
    """

    subscription: Subscription
    message: Message
    token: Any
    history: tuple[Failure, ...] = ()

    @property
    def lost(self) -> int:
        """How many earlier attempts never ended: their worker died or lost its lease."""
        return self.message.attempt - 1 - len(self.history)


class Action(enum.Enum):
    """How a delivery ends."""

    ACK = "ack"
    RETRY = "retry"
    DEAD = "dead"
    RELEASE = "release"


class Write(msgspec.Struct, frozen=True):
    """A change to the store: `value=None` deletes.

    `expect` is the version that must be there: None for any, 0 for none at all. `ttl` is in seconds.
    """

    key: str
    value: bytes | None
    ttl: float | None = None
    expect: int | None = None


class Join(msgspec.Struct, frozen=True, eq=False):
    """A member added to a set that the store keeps at `key`: what happens when the set is full is part of the add.

    The add that brings the set to `size` members *completes* it: then `writes` are applied and `emits` published. A
    member that is there already adds nothing; but where it is the one that completed the set, and `actor` the one that
    added it then, its emits are published again: that is a redelivery, of whose first time nobody knows how far it
    came. So what is published when a set is full is neither skipped nor, by another actor, doubled. `writes` expect no
    versions. `ttl`, in seconds, is how long the set is remembered after the last add.

    All who add to a set name the same `size`, and a full set takes no more. A set is no entry of the store: its key
    may also be an entry's, and get, scan, write and changed know nothing of it.
    """

    key: str
    member: str
    actor: str
    size: int
    emits: Sequence[Outgoing] = ()
    writes: Sequence[Write] = ()
    ttl: float | None = None


class Outcome(msgspec.Struct, frozen=True, eq=False, gc=False):
    """The end of one delivery, applied whole or not at all.

    `delay`, in seconds from the broker's now, is when a retried or released message becomes visible again. `failure`
    says why it was retried or is dead. `emits` are published, `writes` stored and `joins` made in the same commit,
    where the backend can. A release does not count as an attempt.
    """

    delivery: Delivery
    action: Action
    delay: float = 0.0
    failure: Failure | None = None
    emits: Sequence[Outgoing] = ()
    writes: Sequence[Write] = ()
    joins: Sequence[Join] = ()


class DeadLetter(msgspec.Struct, frozen=True):
    """A message that a group gave up on, as the dead letter queue `queue` keeps it.

    `id` is its place in the queue and the handle for show and replay; `at` is seconds since the epoch.
    """

    id: str
    queue: str
    topic: str
    group: str
    message: Message
    reason: str
    at: float
    history: tuple[Failure, ...]


def _identity() -> tuple[str, itertools.count[int]]:
    return os.urandom(9).hex(), itertools.count(1)


_prefix, _sequence = _identity()


def _renew_identity() -> None:
    global _prefix, _sequence
    _prefix, _sequence = _identity()


os.register_at_fork(after_in_child=_renew_identity)


def new_id() -> str:
    """A message id: 72 random bits for the process, then a count. Seven times cheaper than a uuid4 each."""
    return f"{_prefix}-{next(_sequence):x}"
