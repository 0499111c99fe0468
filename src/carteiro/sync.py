"""Publishing from code that has no event loop.

Where the app is open on a loop in another thread of this process, calls go there. Where it is not, the first call
starts one thread with a loop and connections of its own, which ends with the process. A fork copies neither threads
nor the right to use a connection, so a child starts its own.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

from carteiro.connection import Connections
from carteiro.errors import NotConnected

T = TypeVar("T")


class _Links:
    """The connections of one process, each with its loop: the app's while it is open, and the bridge's own."""

    def __init__(self) -> None:
        self.used: tuple[Connections, asyncio.AbstractEventLoop] | None = None
        self.own: tuple[Connections, asyncio.AbstractEventLoop] | None = None
        self.starting = threading.Lock()


class SyncBridge:
    """Runs coroutines on an app's connections for threads that cannot await."""

    def __init__(self, connect: Callable[[], Awaitable[Connections]]) -> None:
        self._connect = connect
        self._by_process: dict[int, _Links] = {}

    @property
    def _links(self) -> _Links:
        # `setdefault` is atomic, where a lock could be one that was held in the parent when it forked.
        return self._by_process.setdefault(os.getpid(), _Links())

    def use(self, connections: Connections | None, loop: asyncio.AbstractEventLoop | None) -> None:
        """Send calls to connections that are open anyway, or to them no more."""
        self._links.used = (connections, loop) if connections is not None and loop is not None else None

    def call(self, work: Callable[[Connections], Awaitable[T]]) -> T:
        """Await what `work` makes of the connections, in their loop; returns and raises what it does."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            links = self._links
            connections, loop = links.used or self._own_connections(links)
            return asyncio.run_coroutine_threadsafe(_awaited(work(connections)), loop).result()
        raise NotConnected("this thread has an event loop, which a sync call would block: use `await app.publish(…)`")

    def _own_connections(self, links: _Links) -> tuple[Connections, asyncio.AbstractEventLoop]:
        with links.starting:
            if links.own is None:
                loop = asyncio.new_event_loop()
                threading.Thread(target=_run, args=(loop,), name="carteiro sync", daemon=True).start()
                try:
                    connections = asyncio.run_coroutine_threadsafe(_awaited(self._connect()), loop).result()
                except BaseException:
                    loop.call_soon_threadsafe(loop.stop)
                    raise
                links.own = connections, loop
                atexit.register(self._close)
            return links.own

    def _close(self) -> None:
        links = self._links
        if links.own is not None:
            (connections, loop), links.own = links.own, None
            asyncio.run_coroutine_threadsafe(connections.close(), loop).result(timeout=10)
            loop.call_soon_threadsafe(loop.stop)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


async def _awaited(work: Awaitable[T]) -> T:
    return await work
