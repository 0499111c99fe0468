"""Who waits for keys of the store to change: told by the server, however many they are.

A key that is waited for has a channel, on which whoever changes it says so (`lua/entries.lua`). So a wait subscribes
first, then compares what is there with what it knows, then waits: whatever is written after the first step is noticed
by the second, or said. Waits that begin together, and what is said together, are one look at the server.

A message may be lost, with its connection or on a server that was flushed. So all is looked at again on a new
connection, and at each beat; that is also how a connection on which nothing comes is known to be alive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from carteiro.backends.redis import scripts
from carteiro.backends.redis.mishaps import AnswerLost
from carteiro.backends.redis.server import LIFETIME, Server
from carteiro.ports.store import Entry

_Wait = asyncio.Future[dict[str, Entry | None]]

_BEAT: Final = LIFETIME / 3
_ANY: Final = -1
"""In place of a version that is known: whatever is there, tell it."""


class Watch:
    def __init__(self, server: Server) -> None:
        self._server = server
        self._waits: dict[str, dict[_Wait, int]] = {}
        """Who waits for a key, and the version that each knows."""
        self._unsure: set[str] = set()
        """Keys to be looked at."""
        self._left: set[str] = set()
        """Keys for which a wait has ended."""
        self._news = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    async def changed(self, versions: Mapping[str, int]) -> Mapping[str, Entry | None]:
        """Raises what a call to the server does."""
        loop = asyncio.get_running_loop()
        wait: _Wait = loop.create_future()
        for key, version in versions.items():
            self._waits.setdefault(key, {})[wait] = version
        self._look_at(versions)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_and_wait(), name="carteiro redis watch")
            self._server.link.on_lost(self._on_lost)
        try:
            return await wait
        finally:
            for key in versions:
                del self._waits[key][wait]
                if not self._waits[key]:
                    del self._waits[key]
            if not self._left:
                loop.call_soon(self._tidy)  # not yet: who waits in a loop goes on with the same subscriptions
            self._left.update(versions)

    def _tidy(self) -> None:
        left = [key for key in self._left if key not in self._waits]
        self._left.clear()
        self._server.link.unlisten_to_all(self._channels(left), self._on_written)
        if not self._waits and self._looking is not None:
            self._server.link.off_lost(self._on_lost)
            self._looking.cancel()
            self._looking = None

    async def _look_and_wait(self) -> None:
        while True:
            keys = self._waits.keys() & self._unsure if self._unsure else self._waits.keys()
            self._unsure = set()
            self._news.clear()
            try:
                await self._look(keys)
            except Exception as error:
                self._fail(error)
            if not self._unsure:
                await self._server.wait(self._news, _BEAT)

    async def _look(self, keys: Collection[str]) -> None:
        """Ends the waits for those that have changed."""
        # Who begins to wait meanwhile may know more than the answer.
        asked = {key: dict(self._waits[key]) for key in keys}
        self._server.link.listen_to_all(self._channels(asked), self._on_written)
        request = [part for key, waits in asked.items() for part in (key, _known(waits))]
        found: dict[_Wait, dict[str, Entry | None]] = {}
        while request:
            looked_at, *changes = await self._ask(request)
            request = request[2 * looked_at :]
            for name, version, value in zip(changes[::3], changes[1::3], changes[2::3], strict=True):
                key = name.decode()
                for wait, known in asked[key].items():
                    if known != version:
                        found.setdefault(wait, {})[key] = None if value is None else Entry(value, version)
        for wait, entries in found.items():
            if not wait.done():
                wait.set_result(entries)

    async def _ask(self, request: Sequence[str | int]) -> Any:
        try:
            return await self._server.run(scripts.CHANGED, *request)
        except AnswerLost:  # only reading, it may be called again; where the server is away that says so
            return await self._server.run(scripts.CHANGED, *request)

    def _fail(self, error: Exception) -> None:
        self._unsure.clear()
        for waits in self._waits.values():
            for wait in waits:
                if not wait.done():
                    wait.set_exception(error)

    def _look_at(self, keys: Iterable[str]) -> None:
        self._unsure.update(keys)
        self._news.set()

    def _on_written(self, message: bytes) -> None:
        self._look_at([message.decode()])

    def _on_lost(self) -> None:
        self._look_at(self._waits)

    def _channels(self, keys: Iterable[str]) -> list[str]:
        return [f"{self._server.base}:store:{key}" for key in keys]


def _known(waits: Mapping[_Wait, int]) -> int:
    versions = set(waits.values())
    return versions.pop() if len(versions) == 1 else _ANY
