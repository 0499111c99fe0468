"""A TCP proxy that a test can be unkind with."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

from tests.servers.process import PATIENCE, free_port

_T = TypeVar("_T")
_CHUNK = 65_536


class Proxy:
    """Hands what comes on `port` of 127.0.0.1 on to a server there, and back.

    It runs on an event loop in a thread of its own, so that it works whatever the test's loop does; each method returns
    when it is done. `cuts` counts the connections that it cut.
    """

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self.cuts = 0
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._listening: socket.socket | None = None
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()  # those of links that were cut too, until they have ended
        self._flowing = asyncio.Event()
        self._cutting: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self.heal()
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    @property
    def connections(self) -> int:
        """How many pass through it now."""
        return len(self._links)

    def cut(self) -> int:
        """Reset all connections, and return how many that were. New ones are still accepted."""
        return self._do(self._cut_all())

    def cut_at_random(self, every: float, seed: int = 0) -> None:
        """From now on, cut a connection every so many seconds on average, every other one amid what it is passing."""
        self._do(self._start_cutting(every, random.Random(seed)))

    def refuse(self) -> None:
        """Listen no more, as a server that is down: new connections are refused. Those that there are stay."""
        self._do(self._refuse())

    def stall(self) -> None:
        """Accept, and pass nothing on, as a server that hangs; what comes is kept, and passed on after `heal`."""
        self._do(self._stall())

    def heal(self) -> None:
        """Do none of this any more."""
        self._do(self._heal())

    def _do(self, action: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(action, self._loop).result(PATIENCE)

    # -- on the proxy's loop -----------------------------------------------------------------------------------------

    async def _refuse(self) -> None:
        if self._listening is not None:
            self._loop.remove_reader(self._listening)
            self._listening.close()
            self._listening = None

    async def _stall(self) -> None:
        self._flowing.clear()

    async def _heal(self) -> None:
        self._stop_cutting()
        self._flowing.set()
        if self._listening is None:
            # An asyncio.Server that is closed while it accepts leaves that connection open until it is collected.
            self._listening = listening = socket.create_server(("127.0.0.1", self.port), backlog=100)
            listening.setblocking(False)
            self._loop.add_reader(listening, self._accept, listening)

    async def _close(self) -> None:
        self._stop_cutting()
        await self._refuse()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # a transport is closed a turn after it was aborted

    async def _cut_all(self) -> int:
        links = list(self._links)
        for link in links:
            self._cut(link)
        return len(links)

    async def _start_cutting(self, every: float, chance: random.Random) -> None:
        self._stop_cutting()
        self._cutting = self._loop.create_task(self._keep_cutting(every, chance))

    async def _keep_cutting(self, every: float, chance: random.Random) -> None:
        while True:
            await asyncio.sleep(chance.expovariate(1 / every))
            if whole := [link for link in self._links if link.torn_after is None]:
                link = chance.choice(whole)
                if chance.random() < 0.5:
                    self._cut(link)
                else:
                    link.torn_after = chance.random()

    def _stop_cutting(self) -> None:
        if self._cutting is not None:
            self._cutting.cancel()
            self._cutting = None
        for link in self._links:
            link.torn_after = None

    def _cut(self, link: _Link) -> None:
        self.cuts += 1
        self._links.discard(link)
        link.cut()

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):  # who had connected may have gone again
            link = _Link(listening.accept()[0])
            self._links.add(link)
            task = self._loop.create_task(self._connect(link))
            self._tasks.add(task)
            task.add_done_callback(lambda task: self._ended(link, task))

    def _ended(self, link: _Link, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._links.discard(link)
        link.cut()
        if not link.writers:
            link.client.close()

    async def _connect(self, link: _Link) -> None:
        with contextlib.suppress(OSError):  # the server is down, or one of the two ends has gone
            source, client = await asyncio.open_connection(sock=link.client)
            link.writers.append(client)
            await self._flowing.wait()
            if link.is_cut:
                return
            answers, server = await asyncio.open_connection("127.0.0.1", self._target)
            link.writers.append(server)
            if not link.is_cut:
                await asyncio.gather(self._pass(link, source, server), self._pass(link, answers, client))

    async def _pass(self, link: _Link, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        while data := await source.read(_CHUNK):
            await self._flowing.wait()
            if link.torn_after is not None:
                to.write(data[: int(len(data) * link.torn_after)])
                await to.drain()
                self._cut(link)
                return
            to.write(data)
            await to.drain()
        with contextlib.suppress(OSError):
            to.write_eof()


class _Link:
    """One connection through the proxy: to the client, and, once it stands, to the server."""

    def __init__(self, client: socket.socket) -> None:
        client.setblocking(False)
        self.client = client
        self.writers: list[asyncio.StreamWriter] = []
        self.is_cut = False
        self.torn_after: float | None = None
        """The share of the next chunk that is passed on before it is cut, if it is to be torn."""

    def cut(self) -> None:
        self.is_cut = True
        for writer in self.writers:
            _reset(writer.get_extra_info("socket"))
            writer.transport.abort()


def _reset(connection: socket.socket) -> None:
    """Have closing it send a RST at once."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
