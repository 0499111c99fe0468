"""RabbitMQ's own queues and exchanges, in place of a topic's name.

Any client may be on their other side, one that knows nothing of carteiro. What comes from there is a message like any
other, with attempts, retries, a dead letter queue, and a topic: `queue:errors` for `RabbitQueue("errors")`. What is
published there has AMQP's own properties and headers, as `wire` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NoReturn
from urllib.parse import unquote

import msgspec

from carteiro.backends.rabbitmq.matching import matches_binding
from carteiro.durations import Duration, seconds
from carteiro.errors import ConfigurationError, UnsupportedFeature
from carteiro.message import Outgoing, Subscription
from carteiro.ports.native import as_words, shown

EXCHANGE: Final = "exchange"
ROUTING_KEY: Final = "routing-key"
"""With the one above, the headers that say by which way a message came, if it came through an exchange."""
OFFSET: Final = "stream-offset"
"""The header with the place in its stream that a message has."""
OWN_TOPICS: Final = ("queue:", "stream:", "exchange:")
"""How the topics of these objects begin."""

_LONGEST: Final = 193
"""Bytes of a name that has room in a routing key behind the delay of a retry."""

if TYPE_CHECKING:
    Length = Duration | None
    Start = Literal["first", "last", "next"] | int | datetime
else:  # msgspec, in which an outbox keeps these objects, has no union of texts and times; they are numbers soon
    Length = Start = Any


class RabbitExchange(msgspec.Struct, frozen=True, tag_field="kind", tag="exchange"):
    """An exchange: to publish to, to bind queues to, or to subscribe to; then each group has a queue of its own there.

    `type`: direct, fanout, topic, headers, or a plugin's. `routing_key` is that of what is published; without one the
    message's key is it. `bind`: exchanges from which it gets messages, in RabbitMQ's order of things a destination.
    `declare=False`: it must be there, and is taken as it is. `arguments`: whatever else the server knows.
    """

    backend: ClassVar[str] = "rabbitmq"

    name: str
    type: str = "direct"
    routing_key: str | None = None
    bind: RabbitExchange | RabbitBinding | Sequence[RabbitExchange | RabbitBinding] = ()
    durable: bool = True
    auto_delete: bool = False
    internal: bool = False
    declare: bool = True
    arguments: Mapping[str, Any] = {}

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigurationError(
                'RabbitExchange(""): the exchange without a name leads to queues by theirs; publish to RabbitQueue("…")'
            )
        _check_name(self, self.name)
        _settle_bind(self)

    def __hash__(self) -> int:
        return hash((EXCHANGE, self.name))  # all that is alike has the same name, and arguments have no hash

    def __repr__(self) -> str:
        return shown(self)

    def to(self, routing_key: str) -> RabbitExchange:
        """The same exchange, to publish to by this key: `logs.to("error")`."""
        return msgspec.structs.replace(self, routing_key=routing_key)

    @property
    def bindings(self) -> tuple[RabbitBinding, ...]:
        return tuple(_bindings(self.bind, ""))

    @property
    def topic(self) -> str:
        key = "" if self.routing_key is None else f"/{self.routing_key}"
        return "exchange:" + as_words(self.name + key)

    def key_of(self, message: Outgoing) -> str:
        """The routing key by which it is published."""
        return (message.key or "") if self.routing_key is None else self.routing_key

    def default_group(self, app: str) -> str:
        return app

    def check_subscription(self, subscription: Subscription) -> None:
        _check_start(self, subscription)

    def check_outgoing(self, message: Outgoing) -> None:
        if message.delay:
            raise UnsupportedFeature(
                f"{self!r} cannot hold a message back: publish with delay= to a RabbitQueue, or to a topic"
            )

    def received(self, message: Outgoing) -> Outgoing | None:
        return _received(self, (RabbitBinding(self, self.routing_key or ""),), message)


class RabbitBinding(msgspec.Struct, frozen=True, tag_field="kind", tag="binding"):
    """What brings messages of `exchange` to who has this binding.

    `routing_key`: which ones; words with `*` and `#` where the exchange's type is topic. `arguments`: for one of type
    headers, the values they must have, and `x-match`: `"all"` or `"any"`.
    """

    exchange: RabbitExchange
    routing_key: str = ""
    arguments: Mapping[str, Any] = {}

    def __hash__(self) -> int:
        return hash((self.exchange, self.routing_key))

    def __repr__(self) -> str:
        return shown(self)


class RabbitQueue(msgspec.Struct, frozen=True, tag_field="kind", tag="queue"):
    """A queue: whoever subscribes shares its messages, with each other and with any other client.

    - `bind`: the exchanges that fill it, or bindings; `routing_key` is that of those exchanges that have none.
    - `type`: `"quorum"`, `"classic"` or `"stream"`. `durable`, `exclusive`, `auto_delete`: as AMQP has them.
    - `max_priority`: messages with a higher header `priority` come first. `ttl`: how long it keeps a message.
      `max_length`, `max_bytes`: how many and how much; `overflow` says which go. `arguments`: all else.
    - `start`: where in a stream a new group begins: `"first"`, `"last"`, `"next"`, an offset, or an aware datetime.
    - `declare=False`: it must be there, and is taken as it is, whatever its arguments.
    """

    backend: ClassVar[str] = "rabbitmq"

    name: str
    bind: RabbitExchange | RabbitBinding | Sequence[RabbitExchange | RabbitBinding] = ()
    routing_key: str = ""
    type: Literal["quorum", "classic", "stream"] = "quorum"
    durable: bool = True
    exclusive: bool = False
    auto_delete: bool = False
    max_priority: int | None = None
    ttl: Length = None
    max_length: int | None = None
    max_bytes: int | None = None
    overflow: str | None = None
    start: Start = "next"
    declare: bool = True
    arguments: Mapping[str, Any] = {}

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigurationError(
                'RabbitQueue(""): it needs a name. For a queue of its own for each process, subscribe to the '
                "RabbitExchange with group=None"
            )
        _check_name(self, self.name)
        _settle_bind(self)
        _set(self, "ttl", None if self.ttl is None else seconds(self.ttl))
        if isinstance(self.start, datetime):
            if self.start.tzinfo is None:
                _cannot_be(self, f"start={self.start!r} has no time zone: give an aware datetime")
            _set(self, "start", self.start.timestamp())
        self._check_options()

    def __hash__(self) -> int:
        return hash((self.type, self.name))

    def __repr__(self) -> str:
        return shown(self)

    @property
    def bindings(self) -> tuple[RabbitBinding, ...]:
        return tuple(_bindings(self.bind, self.routing_key))

    @property
    def is_stream(self) -> bool:
        return self.type == "stream"

    @property
    def topic(self) -> str:
        return ("stream:" if self.is_stream else "queue:") + as_words(self.name)

    def queue_arguments(self) -> dict[str, Any]:
        """As the server names them."""
        lasts = "x-max-age" if self.is_stream else "x-message-ttl"
        ttl = self.ttl
        assert ttl is None or isinstance(ttl, float)
        given: dict[str, Any] = {
            "x-queue-type": self.type,
            "x-max-priority": self.max_priority,
            lasts: None if ttl is None else f"{ttl:.0f}s" if self.is_stream else round(ttl * 1000),
            "x-max-length": self.max_length,
            "x-max-length-bytes": self.max_bytes,
            "x-overflow": self.overflow,
        }
        return {**{name: value for name, value in given.items() if value is not None}, **self.arguments}

    def default_group(self, app: str) -> str:
        return app

    def check_subscription(self, subscription: Subscription) -> None:
        _check_start(self, subscription)
        if not self.is_stream and len(self.name.encode()) > _LONGEST:
            raise ConfigurationError(
                f"{self!r}: its name has over {_LONGEST} bytes, which with a delay before it is too long for a retry"
            )
        if subscription.ephemeral and not self.is_stream:
            raise ConfigurationError(
                f"{self!r} cannot have group=None: a queue gives each message to one process. Subscribe to a "
                "RabbitExchange with group=None, and each process has a queue of its own"
            )

    def check_outgoing(self, message: Outgoing) -> None: ...

    def received(self, message: Outgoing) -> Outgoing | None:
        return _received(self, self.bindings, message)

    def _check_options(self) -> None:
        if self.type not in ("quorum", "classic", "stream"):
            _cannot_be(self, f'type={self.type!r}: it is "quorum", "classic" or "stream"')
        if self.max_priority is not None and self.type != "classic":
            _cannot_be(self, f'a {self.type} queue has no max_priority: say type="classic"')
        if self.type != "classic" and (self.exclusive or self.auto_delete or not self.durable):
            _cannot_be(self, f'a {self.type} queue is durable, for all, and stays: say type="classic"')
        if self.is_stream and (self.max_length is not None or self.overflow is not None):
            _cannot_be(self, "a stream is limited by max_bytes or ttl, and what is oldest goes")
        if not self.is_stream and self.start != "next":
            _cannot_be(self, f'start={self.start!r}: only a stream has a past; say type="stream"')
        if isinstance(self.start, str) and self.start not in ("first", "last", "next"):
            _cannot_be(self, f'start={self.start!r}: it is "first", "last", "next", an offset or an aware datetime')


def native_queue(topic: str) -> str | None:
    """The name of the RabbitQueue that has this topic."""
    return unquote(topic.removeprefix("queue:")) if topic.startswith("queue:") else None


def _bindings(
    given: RabbitExchange | RabbitBinding | Sequence[RabbitExchange | RabbitBinding], routing_key: str
) -> Iterator[RabbitBinding]:
    for one in (given,) if isinstance(given, RabbitExchange | RabbitBinding) else given:
        if isinstance(one, RabbitExchange):
            yield RabbitBinding(one, routing_key if one.routing_key is None else one.routing_key)
        else:
            yield one


def _settle_bind(native: RabbitExchange | RabbitQueue) -> None:
    if not isinstance(native.bind, RabbitExchange | RabbitBinding):
        _set(native, "bind", tuple(native.bind))
    given: Sequence[object] = native.bindings
    for one in given:
        if not isinstance(one, RabbitBinding):
            raise ConfigurationError(f"bind={one!r}: it is a RabbitExchange, a RabbitBinding, or several of them")


def _received(
    source: RabbitExchange | RabbitQueue, bindings: Sequence[RabbitBinding], message: Outgoing
) -> Outgoing | None:
    sent_to = message.target
    if not isinstance(sent_to, RabbitExchange) or message.topic == source.topic:
        return None  # of its own topic it is already
    key = sent_to.key_of(message)
    if not _leads(sent_to.name, bindings, key, message.headers, frozenset()):
        return None
    headers = {**message.headers, EXCHANGE: sent_to.name, ROUTING_KEY: key}
    return msgspec.structs.replace(message, topic=source.topic, headers=headers)


def _leads(
    name: str, bindings: Sequence[RabbitBinding], key: str, headers: Mapping[str, str], passed: frozenset[str]
) -> bool:
    """Whether any of the bindings brings it on from the exchange of this name, by way of others or not."""
    for binding in bindings:
        exchange = binding.exchange
        if exchange.name in passed or not matches_binding(
            exchange.type, binding.routing_key, binding.arguments, key, headers
        ):
            continue
        if exchange.name == name or _leads(name, exchange.bindings, key, headers, passed | {exchange.name}):
            return True
    return False


def _check_name(native: object, name: str) -> None:
    if not isinstance(name, str) or len(name.encode()) > 255:
        raise ConfigurationError(f"{type(native).__name__}({name!r}): its name is a text of at most 255 bytes")


def _check_start(native: object, subscription: Subscription) -> None:
    if subscription.start != "latest":
        raise ConfigurationError(
            f'start={subscription.start!r} on {native!r}: only a stream has a past; say RabbitQueue("…", '
            'type="stream", start="first")'
        )
    if subscription.ordered:
        raise ConfigurationError(f"ordered=True on {native!r}: RabbitMQ gives each message to whoever is free")


def _cannot_be(native: RabbitQueue, why: str) -> NoReturn:
    raise ConfigurationError(f"RabbitQueue({native.name!r}): {why}")


def _set(native: msgspec.Struct, field: str, value: object) -> None:
    msgspec.structs.force_setattr(native, field, value)
