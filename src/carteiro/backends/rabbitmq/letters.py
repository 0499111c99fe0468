"""The dead letters of a queue: to read them is to get them and to give them back, in their order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from typing import Final

import msgspec

from carteiro.backends.rabbitmq import methods
from carteiro.backends.rabbitmq.channel import Channel, Content
from carteiro.backends.rabbitmq.mishaps import NOT_FOUND, Refused
from carteiro.backends.rabbitmq.server import Server
from carteiro.backends.rabbitmq.settling import DIED, LETTER, LETTER_GROUP, LETTER_QUEUE, LETTER_TOPIC, REASON
from carteiro.backends.rabbitmq.wire import KEY, PUBLISHED, TOPIC, Received, read_properties
from carteiro.message import DeadLetter, Message

_AT_ONCE: Final = 500
"""Gets that are sent together."""
_PASSED_ON: Final = 32
"""Acks that are sent together."""


class Held(msgspec.Struct, frozen=True):
    """A letter, and the tag to ack it by on the channel that holds it."""

    tag: int
    letter: DeadLetter


class Desk:
    """One look at one queue of dead letters: `async with`; what was not taken goes back at its end."""

    def __init__(self, server: Server, queue: str) -> None:
        self._server = server
        self._queue = queue
        self._channel: Channel

    async def __aenter__(self) -> Desk:
        self._channel = await (await self._server.link()).channel()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._channel.close()

    async def letters(self, *, ids: Collection[str] | None = None, limit: int | None = None) -> AsyncIterator[Held]:
        """Oldest first; those of `ids`, or all. A queue that is not there has none."""
        left = len(ids) if ids is not None else limit
        while left is None or left > 0:
            got = await self._get(_AT_ONCE if ids is not None or left is None else min(left, _AT_ONCE))
            for content in got:
                held = Held(content[0], _letter(self._queue, content))
                if ids is None or held.letter.id in ids:
                    yield held
                    left = None if left is None else left - 1
            if not got:
                return

    async def _get(self, count: int) -> list[Content]:
        """At most so many, and none only where there is none.

        One get that brings nothing costs the server as much as one that does. Where it cannot tell how many there are
        it says 0, so that one is sent in any case.
        """
        try:
            told = await self._channel.call(methods.queue_declare(self._queue, passive=True))
            there = max(1, told.message_count)
            answers = [self._channel.ask(methods.get(self._queue)) for _ in range(min(count, there))]
            return [content for answer in answers if (content := await answer) is not None]
        except Refused as error:
            if error.code != NOT_FOUND:
                raise
            return []

    async def take_out(self, tags: Sequence[int]) -> None:
        """They are no longer letters, once this returns.

        A channel passes 32 acks on to a quorum queue and keeps the others until these are done. Closed before that,
        RabbitMQ 3.10 forgets them. A get is answered when what was passed on before it is done.
        """
        for start in range(0, len(tags), _PASSED_ON):
            self._channel.write(b"".join(self._channel.ack(tag) for tag in tags[start : start + _PASSED_ON]))
            await self._channel.call(methods.get(self._queue))


def _letter(queue: str, content: Content) -> DeadLetter:
    """What someone else put there is a letter too, that nobody's group failed."""
    received = read_properties(content[4])
    own = received.own
    topic = str(own.get(TOPIC, queue))
    id = received.id or str(content[0])
    message = Message(
        id,
        topic,
        content[5],
        own.get(KEY),
        received.headers,
        received.correlation_id or id,
        own.get(PUBLISHED) or float(received.timestamp),
        max(1, _attempts(received)),
    )
    return DeadLetter(
        str(own.get(LETTER, id)),
        str(own.get(LETTER_QUEUE, queue)),
        str(own.get(LETTER_TOPIC, topic)),
        str(own.get(LETTER_GROUP, "")),
        message,
        str(own.get(REASON, "")),
        float(own.get(DIED, message.published)),
        received.failures,
    )


def _attempts(received: Received) -> int:
    attempts = received.own.get("carteiro-attempts", 1)
    return attempts if isinstance(attempts, int) else 1
