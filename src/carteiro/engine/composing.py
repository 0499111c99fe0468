"""From a value to the message that carries it: encoded, with what says how, and nothing in it that is not text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from carteiro.errors import Unencodable
from carteiro.handlers.codecs import Codec, encode
from carteiro.message import CONTENT_TYPE, EXPIRES_AT, NO_HEADERS, Native, Outgoing


class Draft(msgspec.Struct, frozen=True):
    """A message that is yet to be sent, perhaps more than once: without what sending it gives it.

    `delay` and `expires` are seconds from when it is sent, and from when it is due.
    """

    topic: str
    body: bytes
    key: str | None = None
    headers: Mapping[str, str] = {}
    delay: float = 0.0
    expires: float | None = None
    broker: str | None = None

    def outgoing(self, id: str, now: float, *, dedupe: float | None = None, flow: str | None = None) -> Outgoing:
        """The message, sent at `now` (seconds since the epoch). `flow` is its correlation id, by default its own id."""
        headers = self.headers
        if self.expires is not None:
            headers = {**headers, EXPIRES_AT: repr(now + self.delay + self.expires)}
        return Outgoing(
            id, self.topic, self.body, self.key, headers, flow or id, self.delay, dedupe, broker=self.broker
        )


def compose(
    topic: str,
    value: Any,
    *,
    id: str,
    key: str | None,
    headers: Mapping[str, str],
    correlation_id: str,
    delay: float,
    codec: Codec,
    dedupe: float | None = None,
    target: Native | None = None,
    broker: str | None = None,
) -> Outgoing:
    """Raises Unencodable for a value that no body can hold, or a header, key or id that is no text; UnsupportedFeature
    for what `target`, an object in place of a topic's name, cannot carry.
    """
    body, content_type = encode(value, codec=codec)
    check_text(topic, id=id, key=key, correlation_id=correlation_id)
    written = described(topic, headers, content_type)
    message = Outgoing(id, topic, body, key, written, correlation_id, delay, dedupe, target, broker)
    if target is not None:
        target.check_outgoing(message)
    return message


def described(topic: str, headers: Mapping[str, str], content_type: str | None) -> Mapping[str, str]:
    """Headers with the content type, unless they have one; a copy, so that what the caller keeps is its own."""
    for name, text in headers.items():
        flaw = _flaw(name) or _flaw(text)
        if flaw is not None:
            raise Unencodable(
                f"header {name!r} of a message to `{topic}` {flaw}: headers are text, so write it as you want it read"
            )
    if content_type is None:
        return dict(headers) if headers else NO_HEADERS
    return {CONTENT_TYPE: content_type, **headers}


def check_text(topic: str, **texts: str | None) -> None:
    """Raise Unencodable where one of `texts` is neither text nor None."""
    for name, text in texts.items():
        flaw = None if text is None else _flaw(text)
        if flaw is not None:
            raise Unencodable(f"{name}={text!r} of a message to `{topic}` {flaw}: it must be text")


def _flaw(value: object) -> str | None:
    """What keeps `value` from being text that every broker can carry."""
    if type(value) is not str:
        return f"is of type {type(value).__name__}"
    if value.isascii():
        return None
    try:
        value.encode()
    except UnicodeEncodeError:
        return "holds half of a character (a lone surrogate), which UTF-8 cannot"
    return None
