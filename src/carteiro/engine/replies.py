"""What goes out because a message was handled: its id, and the reply to whoever asked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from carteiro.message import REPLY_TO, Message, Outgoing, Subscription


def emitted_id(parent: Message, subscription: Subscription, number: int) -> str:
    """The id of the nth message that handling `parent` emits: the same whenever the same attempt is repeated."""
    return hashlib.blake2b(f"{parent.id}/{subscription}/{number}".encode(), digest_size=12).hexdigest()


def reply(message: Message, subscription: Subscription, body: bytes, headers: Mapping[str, str]) -> Outgoing:
    """The answer to `message`, which has a `reply-to`."""
    return Outgoing(
        emitted_id(message, subscription, -1), message.headers[REPLY_TO], body, None, headers, message.correlation_id
    )
