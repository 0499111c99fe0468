"""Doing a thing once though it is asked for twice.

Before the handler runs, a *claim* is put in the store by compare-and-set; the ack turns it into a *done* mark in its
own commit. A second delivery that meets a done mark is acked without a call; one that meets another's claim steps back
and is delivered again a little later. The message that made a claim takes it over when it is redelivered, so a worker
that died blocks nobody for longer than its lease; a message that fails gives its claim back with the outcome.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec

from carteiro.durations import Duration, seconds
from carteiro.errors import ConfigurationError, InvalidBody
from carteiro.handlers.codecs import decoder
from carteiro.message import Message, Write
from carteiro.ports.store import Store

_DONE = b"done"
_CLAIM_TTL = 86_400.0
"""Seconds. A claim is given back when its message ends, however that is; this is for one that was purged meanwhile."""

_body = decoder(Any)


class Idempotency(msgspec.Struct, frozen=True):
    """A second message with the same `key` does nothing for `ttl` after the first was done.

    `key` is a field of the body (dots lead inwards: `"order.id"`) or a function of the message. The mark belongs to the
    subscription: other groups have their own.
    """

    key: str | Callable[[Message], object]
    ttl: Duration = timedelta(days=1)

    def __post_init__(self) -> None:
        if seconds(self.ttl) <= 0:
            raise ConfigurationError("Idempotency(ttl=…) must be over 0 seconds")

    def key_of(self, message: Message) -> str:
        """The key of this message; raises InvalidBody where the field is missing."""
        if not isinstance(self.key, str):
            return str(self.key(message))
        try:
            value = _body(message)
            for part in self.key.split("."):
                value = value[part]
        except (LookupError, TypeError):
            raise InvalidBody(f"the body has no field `{self.key}`, which is its idempotency key") from None
        return str(value)


class Standing(enum.Enum):
    """What the store says of a key."""

    MINE = "mine"
    DONE = "done"
    TAKEN = "taken"


class Marks:
    """The marks of one subscription."""

    def __init__(self, policy: Idempotency, subscription: str, store: Store) -> None:
        self._policy = policy
        self._prefix = f"idempotency:{subscription}:"
        self._store = store
        self._done_ttl = seconds(policy.ttl)

    def key_of(self, message: Message) -> str:
        return self._prefix + self._policy.key_of(message)

    async def claim(self, key: str, message: Message) -> Standing:
        """Claim `key` for this message, or say who stands in the way."""
        mine = message.id.encode()
        entry = (await self._store.get([key])).get(key)
        if entry is not None and entry.value == _DONE:
            return Standing.DONE
        if entry is not None and entry.value != mine:
            return Standing.TAKEN
        write = Write(key, mine, ttl=max(_CLAIM_TTL, self._done_ttl), expect=entry.version if entry else 0)
        return Standing.MINE if (await self._store.write([write]))[0] else Standing.TAKEN

    async def given_back(self, message: Message) -> list[Write]:
        """The writes that end a message which is not tried again: what it has claimed, others may."""
        try:
            key = self.key_of(message)
        except InvalidBody:
            return []
        entry = (await self._store.get([key])).get(key)
        return [self.undone(key)] if entry is not None and entry.value == message.id.encode() else []

    def done(self, key: str) -> Write:
        """The write that goes with the ack."""
        return Write(key, _DONE, ttl=self._done_ttl)

    def undone(self, key: str) -> Write:
        """The write that goes with a failure: another message may try."""
        return Write(key, None)
