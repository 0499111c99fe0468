"""Publishing in numbered batches, so that none is published twice.

A connection that ends while a batch is under way leaves it in doubt: nobody here knows whether the server has it. So
the server keeps the number of each publisher's last batch, and takes another one only from a publisher that names that
number. A batch in doubt does not change which number its publisher names: of several in doubt the server takes one at
most, and once it has taken a later one none of them any more, however late they reach it. Its next answer therefore
tells of each of them: the one that it names as its last is published, the others are not and never will be.

Whoever publishes the same objects again, as the engine does, goes on from there: what is published is not sent again.
Batches go one at a time; what gathers meanwhile makes the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from carteiro.backends.redis import scripts
from carteiro.backends.redis.mishaps import AnswerLost
from carteiro.backends.redis.publishing import AT_ONCE, compose_all, fitting, unheard
from carteiro.backends.redis.routes import Routes
from carteiro.backends.redis.server import Server
from carteiro.message import Outgoing, new_id

REMEMBERED: Final = 64
"""How many interrupted publishes are remembered, if their bodies make no more than AT_ONCE bytes; one in any case."""


class _Publish:
    """Messages on their way: the first `done` of them are published, and those from there to `end` go next."""

    def __init__(self, messages: list[Outgoing]) -> None:
        self.messages = messages
        self.done = 0
        self.end = len(messages)
        self.number = 0
        """Of the batch that is under way or in doubt; 0 if none is."""
        self.nobodys: list[Outgoing] = []
        """Those in that batch that nobody gets."""
        self.unrouted: list[Outgoing] = []

    def resolve(self, last: int) -> None:
        """The server has taken `last`, and takes none any more that is in doubt."""
        if self.number and self.number == last:
            self.unrouted += self.nobodys
            self.done = self.end
            self.end += fitting(self.messages[self.done :])
        self.number = 0


class Sender:
    def __init__(self, server: Server) -> None:
        self._server = server
        self._key = f"{server.base}:publisher:{new_id()}"
        self._number = 0
        self._last = 0
        """The number that the server is taken to have."""
        self._interrupted: list[_Publish] = []
        """Those of which something is done or in doubt, oldest first."""
        self._one_at_a_time = asyncio.Lock()

    async def send(self, messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        """Returns those that no group and no log gets.

        Up to AT_ONCE bytes go in one batch: all of them or, where it raises, none. What is more goes in several, and
        where it raises the first of these may be published; after BrokerUnavailable the same objects go on from there.
        """
        async with self._one_at_a_time:
            publish = self._take_up(list(messages))
            try:
                while publish.done < len(publish.messages):
                    await self._server.with_routes(lambda routes: self._send(publish, routes))
            except BaseException:
                if publish.number or publish.done:
                    self._remember(publish)
                raise
            return publish.unrouted

    async def _send(self, publish: _Publish, routes: Routes) -> None:
        """Send its next batch, or find out how it stands with the batches in doubt. Raises Stale."""
        server = self._server
        batch = publish.messages[publish.done : publish.end]
        parts, nobodys = compose_all(routes, batch, server.rows)
        if not publish.number and sum(map(len, parts[1::2])) > AT_ONCE:
            batch = batch[: fitting(batch)]  # only now: what cannot be published is known before any of it is sent
            publish.end = publish.done + len(batch)
            parts, nobodys = compose_all(routes, batch, server.rows)
        before, publish.nobodys = publish.number, nobodys
        if not before:
            self._number += 1
            publish.number = self._number
        try:
            answer = await server.run(scripts.PUBLISH, routes.version, self._key, self._last, publish.number, *parts)
        except (AnswerLost, asyncio.CancelledError):
            raise
        except BaseException:
            publish.number = before
            raise
        if type(answer) is int:
            self._resolve(publish, answer)
            return
        if answer:
            nobodys += unheard(batch, answer, server.link.address)
        self._resolve(publish, publish.number)

    def _resolve(self, publish: _Publish, last: int) -> None:
        self._last = last
        publish.resolve(last)
        if self._interrupted:
            for one in self._interrupted:
                one.resolve(last)
            self._interrupted = [one for one in self._interrupted if one.done]

    def _take_up(self, messages: list[Outgoing]) -> _Publish:
        for publish in self._interrupted:
            if publish.messages == messages:  # the same objects, as messages are compared
                self._interrupted.remove(publish)
                return publish
        return _Publish(messages)

    def _remember(self, publish: _Publish) -> None:
        self._interrupted.append(publish)
        size = 0
        for newer, one in enumerate(reversed(self._interrupted)):
            size += sum(len(message.body) for message in one.messages)
            if newer and (newer == REMEMBERED or size > AT_ONCE):
                del self._interrupted[:-newer]
                return
