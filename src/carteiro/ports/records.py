"""A message as a backend may keep it whole: one *record*, which it stores and hands on but need never look into.

A record is the msgpack array [id, topic, body, key, headers, correlation_id, published], `published` in seconds. Such
values end by themselves, so those of a claim are joined into one value and decoded in one call; a column for each
field cost SQLite twice as much, to write, to read and to build from.
"""

from __future__ import annotations

from typing import Final

import msgspec

from carteiro.errors import BrokerCorrupted, Unencodable
from carteiro.message import Message, Outgoing

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode
_decode_list = msgspec.msgpack.Decoder(list[Message]).decode
_LIST: Final = b"\xdd"  # msgpack's array with a length of four bytes


def pack(message: Outgoing, published: float) -> bytes:
    """Raises Unencodable for what is no text where text must be: nobody could read it again."""
    id, key, headers, correlation_id = message.id, message.key, message.headers, message.correlation_id
    if not (isinstance(id, str) and isinstance(correlation_id, str) and (key is None or isinstance(key, str))):
        raise _no_text(message, "its id, key and correlation id are")
    if headers and not all(isinstance(name, str) and isinstance(text, str) for name, text in headers.items()):
        raise _no_text(message, "its headers' names and values are")
    return _encode((id, message.topic, message.body, key, dict(headers), correlation_id, published))


def unpack(record: bytes, attempt: int = 1) -> Message:
    """Raises BrokerCorrupted for what no `pack` made."""
    try:
        return at_attempt(_decode(record), attempt)
    except msgspec.DecodeError as error:
        raise _unreadable(error) from error


def unpack_all(records: bytes, count: int) -> list[Message]:
    """So many records, one after the other in one value. Raises BrokerCorrupted for what no `pack` made."""
    try:
        return _decode_list(_LIST + count.to_bytes(4, "big") + records)
    except msgspec.DecodeError as error:
        raise _unreadable(error) from error


def repack(message: Message, body: bytes | None = None) -> bytes:
    """The record of a message that was published before, with `body` in place of its own if given."""
    kept = message.body if body is None else body
    return _encode(
        (message.id, message.topic, kept, message.key, message.headers, message.correlation_id, message.published)
    )


def at_attempt(message: Message, attempt: int) -> Message:
    return message if attempt == 1 else msgspec.structs.replace(message, attempt=attempt)


def _no_text(message: Outgoing, said: str) -> Unencodable:
    return Unencodable(f"message `{message.id}` to `{message.topic}` cannot be kept: {said} to be text")


def _unreadable(error: msgspec.DecodeError) -> BrokerCorrupted:
    return BrokerCorrupted(f"a message that the broker keeps cannot be read ({error}): restore a backup")
