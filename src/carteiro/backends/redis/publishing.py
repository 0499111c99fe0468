"""From messages to the entries that the scripts put into queues and logs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from carteiro.backends.redis.routes import Routes, Targets
from carteiro.message import Outgoing
from carteiro.ports.records import pack

_NO_TIME: Final = 9
"""Bytes at the end of a record that say when it was published: the server writes those."""


_SHORT: Final = [bytes([0xA0 | size]) for size in range(32)]


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
    size = len(data)
    if size < 32:
        return msgspec.Raw(_SHORT[size] + data)
    if size < 1 << 8:
        return msgspec.Raw(b"\xd9" + size.to_bytes(1) + data)
    if size < 1 << 16:
        return msgspec.Raw(b"\xda" + size.to_bytes(2) + data)
    return msgspec.Raw(b"\xdb" + size.to_bytes(4) + data)


def micros(seconds: float) -> int:
    return round(seconds * 1_000_000)


def entry(message: Outgoing, row: bytes) -> msgspec.Raw | tuple[msgspec.Raw, int, str | bool, int]:
    """As `fanout.lua` takes it. Raises Unencodable for what is no text where text must be."""
    element = raw(row + pack(message, 0.0)[:-_NO_TIME])
    if not message.delay and message.dedupe is None:
        return element
    if message.dedupe is None:
        return element, micros(message.delay), False, 0
    return element, micros(message.delay), f"{message.topic} {message.id}", micros(message.dedupe)


def compose(messages: Iterable[tuple[Outgoing, Targets]], rows: Rows) -> tuple[list[Any], list[Outgoing]]:
    """[route, entries]… in the order given, neighbours of one route together; and those that nobody gets."""
    parts: list[Any] = []
    unrouted: list[Outgoing] = []
    last: Targets | None = None
    entries: list[Any] = []
    for message, targets in messages:
        if targets.nobody:
            unrouted.append(message)
            continue
        if targets is not last:
            last, entries = targets, []
            parts += (targets.route, entries)
        entries.append(entry(message, rows()))
    return parts, unrouted


def compose_all(routes: Routes, messages: Iterable[Outgoing], rows: Rows) -> tuple[list[Any], list[Outgoing]]:
    targets = routes.targets
    return compose(((message, targets(message.topic)) for message in messages), rows)
