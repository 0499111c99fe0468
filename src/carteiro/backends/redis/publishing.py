"""From messages to the entries that the scripts put into queues and logs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

from carteiro.backends.redis.address import Address
from carteiro.backends.redis.natives import CORRELATION_ID, ID, KEY, RedisChannel, RedisStream
from carteiro.backends.redis.routes import Routes, Targets
from carteiro.errors import Unencodable
from carteiro.message import Outgoing
from carteiro.ports.records import pack

LARGEST: Final = 16 * 1024 * 1024
"""Bytes of a record. A server closes a connection that listens, as ours does, if 32 MB wait to be sent on it."""

AT_ONCE: Final = 64 * 1024 * 1024
"""Bytes, about, of one request; a server takes none of more than 512 MB, and does nothing else meanwhile."""

_NO_TIME: Final = 9
"""Bytes at the end of a record that say when it was published: the server writes those."""
_SHORT: Final = [bytes([0xA0 | size]) if size < 32 else bytes([0xD9, size]) for size in range(256)]
_encode = msgspec.msgpack.Encoder().encode


class Rows:
    """Names for the places of messages: 12 bytes that no other process makes, ascending within this one."""

    def __init__(self) -> None:
        self._begin()

    def __call__(self) -> bytes:
        number = next(self._numbers)
        if number >= 1 << 32:
            self._begin()
            number = next(self._numbers)
        return self._prefix + number.to_bytes(4, "big")

    def _begin(self) -> None:
        self._prefix = os.urandom(8)
        self._numbers = itertools.count()


def raw(data: bytes) -> msgspec.Raw:
    """`data` as a MessagePack text: the server's Lua reads those byte for byte, and knows no binary type."""
    return msgspec.Raw(_head(len(data)) + data)


def _head(size: int) -> bytes:
    """What a text of so many bytes begins with."""
    if size < 256:
        return _SHORT[size]
    return b"\xda" + size.to_bytes(2) if size < 1 << 16 else b"\xdb" + size.to_bytes(4)


def micros(seconds: float) -> int:
    return round(seconds * 1_000_000)


def packed_entry(message: Outgoing, row: bytes) -> bytes:
    """As `fanout.lua` takes it, packed. Raises Unencodable for what is no text where text must be."""
    if message.target is not None:
        fields = as_fields(message, message.target) if isinstance(message.target, RedisStream) else raw(message.body)
        return _encode(fields)
    record = pack(message, 0.0)[:-_NO_TIME]
    if len(record) > LARGEST:
        raise Unencodable(
            f"message `{message.id}` to `{message.topic}` has {len(record) / 1_048_576:.1f} MB, and Redis hands out no "
            f"more than {LARGEST >> 20} MB at once: put the body elsewhere, and publish where it is"
        )
    element = _head(len(record) + len(row)) + row + record
    if message.dedupe is not None:
        mark = f"{message.topic} {message.id}"
        return _encode((msgspec.Raw(element), micros(message.delay), mark, micros(message.dedupe)))
    return _encode((msgspec.Raw(element), micros(message.delay), False, 0)) if message.delay else element


def compose(messages: Iterable[tuple[Outgoing, Targets]], rows: Rows) -> tuple[list[Any], list[Outgoing]]:
    """[route, entries]… in the order given, neighbours of one route together; and those that nobody gets."""
    found: list[tuple[Targets, list[bytes]]] = []
    unrouted: list[Outgoing] = []
    last: Targets | None = None
    nobody = False
    entries: list[bytes] = []
    for message, targets in messages:
        if targets is not last:
            last, nobody, entries = targets, targets.nobody, []
            if not nobody:
                found.append((targets, entries))
        if nobody:
            unrouted.append(message)
        else:
            entries.append(packed_entry(message, rows()))
    parts: list[Any] = []
    for targets, entries in found:
        parts += (targets.route, msgspec.Raw(b"\xdd" + len(entries).to_bytes(4) + b"".join(entries)))
    return parts, unrouted


def compose_all(routes: Routes, messages: Iterable[Outgoing], rows: Rows) -> tuple[list[Any], list[Outgoing]]:
    return compose(_addressed(routes, messages), rows)


def _addressed(routes: Routes, messages: Iterable[Outgoing]) -> Iterator[tuple[Outgoing, Targets]]:
    last: tuple[Outgoing, Targets] | None = None
    for message in messages:
        if last is None or message.topic != last[0].topic or message.target is not last[0].target:
            last = message, routes.of(message)
        yield message, last[1]


def fitting(messages: Sequence[Outgoing]) -> int:
    """How many of them make AT_ONCE bytes: one at least, if there are any."""
    size = 0
    for count, message in enumerate(messages):
        size += len(pack(message, 0.0))
        if count and size > AT_ONCE:
            return count
    return len(messages)


def as_fields(message: Outgoing, stream: RedisStream) -> list[msgspec.Raw]:
    """Names and values of an entry, as `import.lua` reads them back."""
    fields = {stream.body_field: message.body, ID: message.id.encode()}
    if message.key is not None:
        fields[KEY] = message.key.encode()
    if message.correlation_id != message.id:
        fields[CORRELATION_ID] = message.correlation_id.encode()
    fields |= {name: text.encode() for name, text in message.headers.items()}
    return [raw(part) for name, value in fields.items() for part in (name.encode(), value)]


def unheard(messages: Iterable[Outgoing], heard: Sequence[int], address: Address) -> list[Outgoing]:
    """Those to a channel on which nobody listened; a node of a cluster knows only of its own listeners."""
    if address.kind == "cluster":
        return []
    sent = (message for message in messages if isinstance(message.target, RedisChannel))
    return [message for message, listeners in zip(sent, heard, strict=True) if not listeners]
