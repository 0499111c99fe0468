"""Publishing in numbered batches, so that none is published twice.

When the connection breaks while a batch is under way nobody here knows whether the server has it. Whoever publishes the
same messages again gives them the same number, and the server, which remembers the last number of each publisher, does
nothing if it has had that one. So batches go one at a time; what gathers meanwhile makes the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from carteiro.backends.redis import scripts
from carteiro.backends.redis.mishaps import Stale
from carteiro.backends.redis.publishing import compose_all, unheard
from carteiro.backends.redis.server import Server
from carteiro.errors import BrokerUnavailable
from carteiro.message import Outgoing, new_id


class Sender:
    def __init__(self, server: Server) -> None:
        self._server = server
        self._key = f"{server.base}:publisher:{new_id()}"
        self._number = 0
        self._doubtful: list[str] | None = None
        """The ids of the last batch, if its answer was lost."""
        self._one_at_a_time = asyncio.Lock()

    async def send(self, messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        """Returns those that no group and no log gets."""
        async with self._one_at_a_time:
            if self._doubtful is None or self._doubtful != [message.id for message in messages]:
                self._number += 1
            try:
                unrouted = await self._send(messages)
            except BrokerUnavailable:
                self._doubtful = [message.id for message in messages]
                raise
            self._doubtful = None
            return unrouted

    async def _send(self, messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        server = self._server
        while True:
            routes = await server.routes()
            parts, unrouted = compose_all(routes, messages, server.rows)
            try:
                heard = await server.run(scripts.PUBLISH, routes.version, self._key, self._number, *parts)
            except Stale:
                server.forget_routes()
                continue
            return [*unrouted, *unheard(messages, heard, server.link.address)] if heard else unrouted
