"""The methods that we call, as their payload. pamqp writes their tables; it would not let a queue be called `a.*@b`."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from pamqp import encode

from carteiro.backends.rabbitmq.wire import short

_id = struct.Struct(">HH").pack
_NONE: Mapping[str, Any] = {}


def channel_open() -> bytes:
    return _id(20, 10) + b"\0"


def channel_close() -> bytes:
    return _id(20, 40) + b"\0\xc8" + short("done", "") + bytes(4)


def channel_close_ok() -> bytes:
    return _id(20, 41)


def flow_ok(active: bool) -> bytes:
    return _id(20, 21) + _bits(active)


def confirm_select() -> bytes:
    return _id(85, 10) + b"\0"


def exchange_declare(
    name: str,
    kind: str,
    *,
    passive: bool = False,
    durable: bool = True,
    auto_delete: bool = False,
    internal: bool = False,
    arguments: Mapping[str, Any] = _NONE,
) -> bytes:
    flags = _bits(passive, durable, auto_delete, internal)
    return _id(40, 10) + b"\0\0" + short(name, "exchange") + short(kind, "type") + flags + _table(arguments)


def exchange_delete(name: str) -> bytes:
    return _id(40, 20) + b"\0\0" + short(name, "exchange") + b"\0"


def exchange_bind(destination: str, source: str, key: str, arguments: Mapping[str, Any] = _NONE) -> bytes:
    names = short(destination, "exchange") + short(source, "exchange") + short(key, "routing key")
    return _id(40, 30) + b"\0\0" + names + b"\0" + _table(arguments)


def queue_declare(
    name: str,
    *,
    passive: bool = False,
    durable: bool = True,
    exclusive: bool = False,
    auto_delete: bool = False,
    arguments: Mapping[str, Any] = _NONE,
) -> bytes:
    flags = _bits(passive, durable, exclusive, auto_delete)
    return _id(50, 10) + b"\0\0" + short(name, "queue") + flags + _table(arguments)


def queue_bind(queue: str, exchange: str, key: str, arguments: Mapping[str, Any] = _NONE) -> bytes:
    names = short(queue, "queue") + short(exchange, "exchange") + short(key, "routing key")
    return _id(50, 20) + b"\0\0" + names + b"\0" + _table(arguments)


def queue_purge(name: str) -> bytes:
    return _id(50, 30) + b"\0\0" + short(name, "queue") + b"\0"


def queue_delete(name: str) -> bytes:
    return _id(50, 40) + b"\0\0" + short(name, "queue") + b"\0"


def qos(prefetch: int) -> bytes:
    """For the consumers that the channel has from now on."""
    return _id(60, 10) + bytes(4) + prefetch.to_bytes(2, "big") + b"\0"


def consume(queue: str, tag: str, *, exclusive: bool = False, arguments: Mapping[str, Any] = _NONE) -> bytes:
    names = short(queue, "queue") + short(tag, "tag")
    return _id(60, 20) + b"\0\0" + names + _bits(False, False, exclusive, False) + _table(arguments)


def cancel_nowait(tag: str) -> bytes:
    return _id(60, 30) + short(tag, "tag") + b"\1"


def get(queue: str) -> bytes:
    return _id(60, 70) + b"\0\0" + short(queue, "queue") + b"\0"


def _bits(*flags: bool) -> bytes:
    return bytes([sum(flag << place for place, flag in enumerate(flags))])


def _table(arguments: Mapping[str, Any]) -> bytes:
    return encode.field_table(dict(arguments))
