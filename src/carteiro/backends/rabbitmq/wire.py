"""A message as AMQP carries it: the body is the body, the rest are properties and headers that any client can read.

| of a message | is in AMQP |
| --- | --- |
| id, correlation id | the properties message_id, correlation_id |
| headers `type`, `content-type`, `content-encoding`, `reply-to`, `app-id`, `priority` | the properties of these names |
| other headers | headers, as text |
| topic | the routing key, or where that says something else (a queue, a delay) `carteiro-topic` |
| key | `carteiro-key` |
| published | the property timestamp, in whole seconds, and `carteiro-published`, with their fraction |
| attempts that have ended | `carteiro-attempts`, and the failures among them, as JSON, `carteiro-failures` |

The attempts that did not end the server counts itself, in `x-delivery-count`, until the message is written anew.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

import msgspec
from pamqp import decode

from carteiro.backends.rabbitmq.natives import EXCHANGE, ROUTING_KEY
from carteiro.errors import Unencodable
from carteiro.message import CONTENT_TYPE, NO_HEADERS, REPLY_TO, TYPE, Failure, Message

TOPIC: Final = "carteiro-topic"
KEY: Final = "carteiro-key"
PUBLISHED: Final = "carteiro-published"
ATTEMPTS: Final = "carteiro-attempts"
FAILURES: Final = "carteiro-failures"
PRIORITY: Final = "priority"
ALSO_TO: Final = "CC"
"""The server's own: further routing keys of a message; a queue that several lead to gets one copy."""
_DELIVERIES: Final = "x-delivery-count"
_COUNTED: Final = 10
"""Deliveries: RabbitMQ 4 drops a message after 20, unless its queue has another limit."""
STREAM_OFFSET: Final = "x-stream-offset"
"""The server's own too: the place of a message in its stream."""
_OURS: Final = "carteiro-"
_THEIRS: Final = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-", "x-acquired-", "x-stream-", "x-opt-")
"""What the server adds on the way, and no publisher said."""

_HEADERS, _MODE, _PRIORITY, _CORRELATION, _ID, _TIMESTAMP = 1 << 13, 1 << 12, 1 << 11, 1 << 10, 1 << 7, 1 << 6
_PLAIN: Final = (_HEADERS | _MODE | _CORRELATION | _ID | _TIMESTAMP).to_bytes(2, "big")
_DURABLE: Final = b"\x02"
_LONGEST: Final = 255
"""Bytes of a short string."""
_TRACES: Final = 48 * 1024
"""Bytes that the failures may take, so that they fit into a frame with all else: the oldest tracebacks go first."""

# The properties that are headers of a message, by their bit; AMQP has them in the order of falling bits.
_NAMED: Final = {
    1 << 15: CONTENT_TYPE,
    1 << 14: "content-encoding",
    1 << 9: REPLY_TO,
    1 << 5: TYPE,
    1 << 3: "app-id",
}
_BITS: Final = {name: bit for bit, name in _NAMED.items()}
_EXPIRATION: Final = 1 << 8
_READ_ONLY: Final = {_EXPIRATION: "expiration", 1 << 4: "user-id", 1 << 2: "cluster-id"}
"""Text too, which the server acts upon or checks: a header of the name is not meant so."""

_pack_double = struct.Struct(">d").pack
_pack_long = struct.Struct(">q").pack
_pack_size = struct.Struct(">I").pack
_size = struct.Struct(">I").unpack_from
_double = struct.Struct(">d").unpack_from
_long = struct.Struct(">q").unpack_from
_flags = struct.Struct(">H").unpack_from
_published_head: Final = bytes([len(PUBLISHED)]) + PUBLISHED.encode() + b"d"
_encode_failures = msgspec.json.Encoder().encode
_decode_failures = msgspec.json.Decoder(tuple[Failure, ...]).decode


class Received(msgspec.Struct, frozen=True, gc=False):
    """What the properties of a delivery say."""

    id: str | None
    correlation_id: str | None
    timestamp: int
    headers: Mapping[str, str]
    own: Mapping[str, Any]
    """Carteiro's headers, and the server's: its count of deliveries, further routing keys, the offset in a stream."""

    @property
    def attempt(self) -> int:
        """Of this delivery, from 1."""
        return _count(self.own.get(ATTEMPTS)) + _count(self.own.get(_DELIVERIES)) + 1

    @property
    def failures(self) -> tuple[Failure, ...]:
        written = self.own.get(FAILURES)
        if written is None:
            return ()
        try:
            return _decode_failures(written)
        except (msgspec.MsgspecError, TypeError):  # anyone may write a header
            return ()

    @property
    def is_counted(self) -> bool:
        """Whether the server has counted its deliveries, and is far from the limit at which it would drop it."""
        return 0 < _count(self.own.get(_DELIVERIES)) <= _COUNTED

    def redelivered(self) -> Received:
        """With the flag of a queue that does not count: it was delivered at least once before."""
        if _DELIVERIES in self.own:
            return self
        return msgspec.structs.replace(self, own={**self.own, _DELIVERIES: 1})


# -- writing -----------------------------------------------------------------------------------------------------------


def write_properties(
    message: Message,
    *,
    topic: bool = False,
    attempts: int = 0,
    failures: tuple[Failure, ...] = (),
    more: Mapping[str, str] = NO_HEADERS,
    also_to: str | None = None,
    expiration: float | None = None,
) -> bytes:
    """The flags and values of a content header. `topic`: say it, since the routing key does not.

    `attempts` have ended before; `also_to` is a further routing key; `expiration`, in seconds, is for the server to
    drop it by. Raises Unencodable for what AMQP cannot hold.
    """
    flags = _HEADERS | _MODE | _CORRELATION | _ID | _TIMESTAMP
    table = [_published_head, _pack_double(message.published)]
    named: dict[int, bytes] = {}
    priority = b""
    for name, text in message.headers.items():
        if (bit := _BITS.get(name)) is not None:
            named[bit] = short(text, f"header {name!r}")
            flags |= bit
        elif name == PRIORITY and text.isdecimal() and int(text) < 256:
            priority = bytes([int(text)])
            flags |= _PRIORITY
        else:
            table.append(_text_field(name, text))
    if expiration is not None:
        named[_EXPIRATION] = short(str(max(0, round(expiration * 1000))), "expiration")
        flags |= _EXPIRATION
    if topic:
        table.append(_text_field(TOPIC, message.topic))
    if message.key is not None:
        table.append(_text_field(KEY, message.key))
    if attempts:
        table.append(short(ATTEMPTS, "") + b"l" + _pack_long(attempts))
    if failures:
        table.append(_text_field(FAILURES, _shortened(failures)))
    table += (_text_field(name, text) for name, text in more.items())
    if also_to is not None:
        key = also_to.encode()
        entry = b"S" + _pack_size(len(key)) + key
        table.append(short(ALSO_TO, "") + b"A" + _pack_size(len(entry)) + entry)
    fields = b"".join(table)
    return b"".join(
        (
            flags.to_bytes(2, "big"),
            named.get(1 << 15, b""),
            named.get(1 << 14, b""),
            _pack_size(len(fields)),
            fields,
            _DURABLE,
            priority,
            short(message.correlation_id, "correlation id"),
            named.get(1 << 9, b""),
            named.get(_EXPIRATION, b""),
            short(message.id, "id"),
            _pack_long(int(message.published)),
            named.get(1 << 5, b""),
            named.get(1 << 3, b""),
        )
    )


@lru_cache(maxsize=8192)
def publish_method(exchange: str, routing_key: str, *, mandatory: bool) -> bytes:
    """The payload of Basic.Publish."""
    return b"".join(
        (b"\x00\x3c\x00\x28\x00\x00", short(exchange, "exchange"), short(routing_key, "topic"), bytes([mandatory]))
    )


def short(text: str, what: str) -> bytes:
    """AMQP's short string."""
    written = text.encode()
    if len(written) > _LONGEST:
        raise Unencodable(f"{what} `{text[:40]}…` has {len(written)} bytes, and AMQP takes no more than {_LONGEST}")
    return bytes([len(written)]) + written


def _text_field(name: str, text: str) -> bytes:
    written = text.encode()
    return b"".join((short(name, "a header's name"), b"S", _pack_size(len(written)), written))


def _shortened(failures: tuple[Failure, ...]) -> str:
    """As JSON, without the oldest tracebacks where all together would not fit."""
    room, kept = _TRACES, []
    for failure in reversed(failures):
        room -= len(failure.traceback) + len(failure.error)
        fits = room > 0
        error = failure.error if fits else failure.error[:200]
        kept.append(Failure(failure.attempt, failure.at, error, failure.traceback if fits else ""))
    return _encode_failures(kept[::-1]).decode()


# -- reading -----------------------------------------------------------------------------------------------------------


def read_properties(data: bytes) -> Received:
    """Of any client's message; what we write for most of ours is read in a few steps."""
    headers: dict[str, str] = {}
    own: dict[str, Any] = {}
    if data.startswith(_PLAIN) and data.startswith(_published_head, 6):
        stop = 6 + _size(data, 2)[0]
        at = 6 + len(_published_head)
        own[PUBLISHED] = _double(data, at)[0]
        if at + 8 < stop:
            _read_table(data, at + 8, stop, headers, own)
        end = stop + 2 + data[stop + 1]  # past the mode
        after = end + 1 + data[end]
        return Received(data[end + 1 : after].decode(), data[stop + 2 : end].decode(), 0, headers or NO_HEADERS, own)
    flags, at = _flags(data)[0], 2
    id = correlation_id = None
    timestamp = 0
    bit = 1 << 15
    while bit > 2:
        if flags & bit:
            if bit == _HEADERS:
                stop = at + 4 + _size(data, at)[0]
                _read_table(data, at + 4, stop, headers, own)
                at = stop
            elif bit == _TIMESTAMP:
                timestamp = _long(data, at)[0]
                at += 8
            elif bit == _MODE:
                at += 1
            elif bit == _PRIORITY:
                headers[PRIORITY] = str(data[at])
                at += 1
            else:
                stop = at + 1 + data[at]
                text = data[at + 1 : stop].decode("utf-8", "replace")
                at = stop
                if bit == _ID:
                    id = text
                elif bit == _CORRELATION:
                    correlation_id = text
                else:
                    headers[_NAMED.get(bit) or _READ_ONLY[bit]] = text
        bit >>= 1
    return Received(id or None, correlation_id, timestamp, headers or NO_HEADERS, own)


def _read_table(data: bytes, at: int, stop: int, headers: dict[str, str], own: dict[str, Any]) -> None:
    while at < stop:
        end = at + 1 + data[at]
        name = data[at + 1 : end].decode("utf-8", "replace")
        kind = data[end]
        at = end + 1
        value: Any
        if kind == 0x53:  # S, text
            end = at + 4 + _size(data, at)[0]
            value = data[at + 4 : end].decode("utf-8", "replace")
            at = end
        elif kind == 0x64:  # d, a double
            value = _double(data, at)[0]
            at += 8
        elif kind == 0x6C:  # l, a long
            value = _long(data, at)[0]
            at += 8
        else:
            used, value = decode.embedded_value(data[at - 1 : stop])
            at += used - 1
        if name.startswith(_OURS) or name in (_DELIVERIES, ALSO_TO, STREAM_OFFSET):
            own[name] = value
        elif not name.startswith(_THEIRS):
            headers[name] = value if type(value) is str else _as_text(value)


def _as_text(value: object) -> str:
    """Header values of other clients may be anything."""
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", "replace")
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bool) or value is None or isinstance(value, dict | list):
        return msgspec.json.encode(value, enc_hook=str).decode()
    return str(value)


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def to_message(received: Received, topic: str, body: bytes, now: float) -> Message:
    """`topic` is that of its routing key. What has no id gets one of its content, the same at each delivery."""
    own = received.own
    id = received.id or _id_of(received, topic, body)
    return Message(
        id,
        own.get(TOPIC, topic),
        body,
        own.get(KEY),
        received.headers,
        received.correlation_id or id,
        own.get(PUBLISHED) or float(received.timestamp) or now,
        received.attempt,
    )


def as_from(topic: str, received: Received, message: Message, exchange: bytes, key: bytes) -> Message:
    """A message as it comes from an object of RabbitMQ's own, which has this topic: it says by which exchange."""
    if received.own.get(TOPIC) == topic or not (exchange or TOPIC in received.own):
        return message  # it was here before, and has said it; or it was sent straight here
    headers = dict(message.headers)
    if exchange:
        headers[EXCHANGE], headers[ROUTING_KEY] = exchange.decode("utf-8", "replace"), key.decode("utf-8", "replace")
    return msgspec.structs.replace(message, topic=topic, headers=headers)


def _id_of(received: Received, topic: str, body: bytes) -> str:
    content = blake2b(body, digest_size=12)
    content.update(
        repr((topic, received.timestamp, received.correlation_id, sorted(received.headers.items()))).encode()
    )
    return content.hexdigest()
