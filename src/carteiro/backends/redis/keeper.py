"""What a process does unasked: say every ten seconds that it lives, and clear away what has passed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import Final

from carteiro.backends.redis import scripts
from carteiro.backends.redis.consumer import RedisConsumer
from carteiro.backends.redis.publishing import micros
from carteiro.backends.redis.server import LIFETIME, Server, fresh
from carteiro.errors import BrokerError

log = logging.getLogger("carteiro.redis")

_BEAT: Final = LIFETIME / 3


class Keeper:
    """Beats from `start` to `stop`. A beat is also how a connection on which nothing happens is known to be alive."""

    def __init__(self, server: Server, consumers: Callable[[], Collection[RedisConsumer]]) -> None:
        self._server = server
        self._consumers = consumers
        self._beating: asyncio.Task[None] | None = None
        self._joined = asyncio.Event()

    def start(self) -> None:
        self._beating = asyncio.create_task(self._run(), name="carteiro redis beat")

    async def stop(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait([self._beating])
            self._beating = None

    def joined(self) -> None:
        """A consumer has come: say so now."""
        self._joined.set()

    async def _run(self) -> None:
        while True:
            self._joined.clear()
            try:
                await self._beat()
            except BrokerError as error:
                log.debug("no beat: %s", error)  # whoever needs the server says so louder
            await self._server.wait(self._joined, _BEAT)

    async def _beat(self) -> None:
        ephemeral = [one for one in self._server.declared() if one.ephemeral]
        listening = [one for consumer in self._consumers() for one in consumer.listening]
        queues = [self._server.queue(one) for one in ephemeral]
        version, missing, more = await self._server.run(scripts.BEAT, fresh(), micros(LIFETIME), queues, listening)
        await self._server.seen(version)
        if missing:
            await self._server.restore()  # this process was silent for so long that it counted as gone
        for consumer in self._consumers():
            consumer.heat()
        while more:
            _, _, more = await self._server.run(scripts.BEAT, fresh(), micros(LIFETIME), [], [])
