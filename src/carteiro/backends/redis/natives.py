"""Redis' own channels, lists and streams, in place of a topic's name.

Any client may be on their other side, one that knows nothing of carteiro. What such a client puts there is a message
like any other, with attempts, retries, a dead letter queue, and a topic: `list:jobs` for `RedisList("jobs")`. What is
published to them is written as such a client would write it.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import ClassVar, Final, NoReturn

import msgspec

from carteiro.errors import ConfigurationError, UnsupportedFeature
from carteiro.message import CONTENT_TYPE, Outgoing, Subscription
from carteiro.ports.native import as_words, shown

BODY: Final = "body"
ID: Final = "id"
KEY: Final = "key"
CORRELATION_ID: Final = "correlation-id"
"""With the three above, the fields of a stream's entry that are no headers, if it has the one with the body."""
CHANNEL: Final = "channel"
"""The header with the name of the channel that a message came through."""
STREAM_ID: Final = "stream-id"
"""The header with the id of the entry that a message was."""


class RedisChannel(msgspec.Struct, frozen=True):
    """A channel: what any client sends with PUBLISH, and every process that listens gets its own copy.

    With `pattern` the name is a glob as PSUBSCRIBE has it, `news.*`, and one can only subscribe. A message has the
    header `channel`. Redis keeps nothing of a channel: what is sent while nobody is connected is gone.
    """

    backend: ClassVar[str] = "redis"

    name: str
    pattern: bool = False

    def __post_init__(self) -> None:
        _check_name(self, self.name)

    def __repr__(self) -> str:
        return shown(self)

    @property
    def topic(self) -> str:
        return "channel:" + as_words(self.name)

    def default_group(self, app: str) -> None:
        return None

    def check_subscription(self, subscription: Subscription) -> None:
        if not subscription.ephemeral:
            raise ConfigurationError(
                f"{self!r} cannot have group=: every process that listens to a channel gets its own copy. To share the "
                "messages, have them put into a RedisList or a RedisStream"
            )
        _check_start(self, subscription)

    def check_outgoing(self, message: Outgoing) -> None:
        if self.pattern:
            raise UnsupportedFeature(f"{self!r} is a pattern: one can subscribe to it, but publishing needs a channel")
        _check_times(self, message)
        _check_body_alone(self, message)

    def received(self, message: Outgoing) -> Outgoing | None:
        sent_to = message.target
        if not (self.pattern and isinstance(sent_to, RedisChannel) and _matches(self.name, sent_to.name)):
            return None
        headers = {**message.headers, CHANNEL: sent_to.name}
        return msgspec.structs.replace(message, topic=self.topic, headers=headers)


class RedisList(msgspec.Struct, frozen=True):
    """A list as a queue: any client fills it with RPUSH or LPUSH, and handlers get its elements from the left end.

    Each group of its subscribers gets every element, from the time when the group was declared. Publishing is RPUSH.
    """

    backend: ClassVar[str] = "redis"

    name: str

    def __post_init__(self) -> None:
        _check_name(self, self.name)

    def __repr__(self) -> str:
        return shown(self)

    @property
    def topic(self) -> str:
        return "list:" + as_words(self.name)

    def default_group(self, app: str) -> str:
        return app

    def check_subscription(self, subscription: Subscription) -> None:
        _check_start(self, subscription)

    def check_outgoing(self, message: Outgoing) -> None:
        _check_times(self, message)
        _check_body_alone(self, message)

    def received(self, message: Outgoing) -> None:
        return None


class RedisStream(msgspec.Struct, frozen=True):
    """A stream, read through a consumer group of its own: a new one, or one that others read through too.

    `group` is the consumer group and the subscriber's group, one and the same. `body` names the field that holds the
    body, `body` by default; the other fields are headers. Of an entry without it the body is a JSON object of all its
    fields. A message has the header `stream-id`. `maxlen`: publishing trims the stream to about so many entries.
    """

    backend: ClassVar[str] = "redis"

    name: str
    group: str | None = None
    body: str | None = None
    maxlen: int | None = None

    def __post_init__(self) -> None:
        _check_name(self, self.name)
        if self.maxlen is not None and self.maxlen < 1:
            raise ConfigurationError(f"maxlen={self.maxlen} of the stream `{self.name}`: at least 1")
        if self.body_field in (ID, KEY, CORRELATION_ID, STREAM_ID):
            raise ConfigurationError(f'body="{self.body}" of the stream `{self.name}`: that field means something else')

    def __repr__(self) -> str:
        return shown(self)

    @property
    def topic(self) -> str:
        return "stream:" + as_words(self.name)

    @property
    def body_field(self) -> str:
        return self.body or BODY

    def default_group(self, app: str) -> str:
        return self.group or app

    def check_subscription(self, subscription: Subscription) -> None:
        if subscription.ephemeral:
            raise ConfigurationError(
                f"{self!r} cannot have group=None: a consumer group stays in the stream when its process is gone. "
                "Give the subscriber a group, or take a RedisChannel"
            )
        if self.group not in (None, subscription.group):
            raise ConfigurationError(
                f'{self!r} is read as the group `{self.group}`, and the subscriber has group="{subscription.group}": '
                "say it in one place"
            )

    def check_outgoing(self, message: Outgoing) -> None:
        _check_times(self, message)
        taken = {self.body_field, ID, KEY, CORRELATION_ID, STREAM_ID}.intersection(message.headers)
        if taken:
            raise UnsupportedFeature(f"{self!r} has a field `{min(taken)}` of its own: give the header another name")

    def received(self, message: Outgoing) -> None:
        return None


def _check_name(native: object, name: str) -> None:
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"{type(native).__name__}({name!r}): it needs the name of a key")


def _check_start(native: object, subscription: Subscription) -> None:
    if subscription.start != "latest":
        raise ConfigurationError(
            f'start="{subscription.start}" on {native!r}: only a stream has a past. Take a RedisStream, or drop it'
        )


def _check_times(native: object, message: Outgoing) -> None:
    if message.delay:
        _refuse(native, "hold a message back: publish with delay= to a topic, and have its handler pass it on")
    if message.dedupe is not None:
        _refuse(native, "recognise an id: drop id=, and give the subscriber an idempotency= where twice is too often")


def _check_body_alone(native: object, message: Outgoing) -> None:
    for what in ("a key" if message.key is not None else "", *message.headers):
        if what and what != CONTENT_TYPE:
            _refuse(native, f"carry `{what}`: it holds bodies and nothing else. Put it in there, or take a RedisStream")


def _refuse(native: object, what: str) -> NoReturn:
    raise UnsupportedFeature(f"{native!r} cannot {what}")


def _matches(pattern: str, channel: str) -> bool:
    return fnmatchcase(channel, pattern.replace("[^", "[!"))
