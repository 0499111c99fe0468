"""From what is typed on a command line to a message, and to the values of its headers."""

from __future__ import annotations

import sys
from typing import Annotated

import msgspec
import typer

from carteiro.app import Carteiro
from carteiro.durations import Duration
from carteiro.handlers.codecs import BINARY
from carteiro.message import CONTENT_TYPE, Outgoing

TopicArgument = Annotated[str, typer.Argument(metavar="TOPIC", help="Dotted words, as in orders.placed.")]
BodyArgument = Annotated[
    str, typer.Argument(metavar="BODY", help="JSON if it parses as that, else text. `-` reads it from stdin.")
]


def outgoing(
    app: Carteiro,
    topic: str,
    body: bytes,
    *,
    broker: str | None = None,
    key: str | None = None,
    headers: dict[str, str] | None = None,
    type: str | None = None,
    delay: Duration | None = None,
    expires: Duration | None = None,
    id: str | None = None,
) -> Outgoing:
    """A message with `body` to the letter if that is JSON, which any codec reads; else as JSON string, or bytes."""
    message = app.outgoing(
        topic, None, broker=broker, key=key, headers=headers, type=type, delay=delay, expires=expires, id=id
    )
    given = headers or {}
    written = {name: value for name, value in message.headers.items() if name != CONTENT_TYPE or name in given}
    body = body.strip()
    try:
        msgspec.json.decode(body)
    except (ValueError, RecursionError):
        try:
            body = msgspec.json.encode(body.decode())
        except UnicodeDecodeError:
            written.setdefault(CONTENT_TYPE, BINARY)
    return msgspec.structs.replace(message, body=body, headers=written)


def read(body: str) -> bytes:
    """The bytes that the argument BODY stands for."""
    return sys.stdin.buffer.read() if body == "-" else body.encode()
