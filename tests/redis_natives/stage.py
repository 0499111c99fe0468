"""What these tests hold in hand: apps on a server, and a client that knows nothing of carteiro."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import redis

from carteiro import Carteiro, Message
from carteiro.message import DeadLetter, Native
from carteiro.ports.broker import GroupStatus, Inspector
from carteiro.ports.registry import open_backend

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds after which what a test waits for is taken not to come."""


async def soon(awaitable: Awaitable[T]) -> T:
    return await asyncio.wait_for(awaitable, PATIENCE)


class Place:
    """A server, as a plain client and as apps see it. Keys are the test's own, by `name`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.prefix = parse_qs(urlsplit(url).query)["prefix"][0]
        # As Any: for each answer its types name all that a server could say.
        self.client: Any = redis.Redis.from_url(url.partition("?")[0])
        self.text: Any = redis.Redis.from_url(url.partition("?")[0], decode_responses=True)

    def name(self, what: str) -> str:
        return f"{self.prefix}-{what}"

    def app(self, name: str = "shop", **options: Any) -> Carteiro:
        return Carteiro(name, self.url, **options)

    async def until(self, holds: Callable[[], Any]) -> None:
        """Return once this is so."""
        async with asyncio.timeout(PATIENCE):
            while not holds():  # noqa: ASYNC110 (the server tells nobody)
                await asyncio.sleep(0.005)

    async def dead(self) -> list[DeadLetter]:
        async with self.inspector() as inspector:
            return list(await inspector.dead_letters())

    async def group(self, topic: str, group: str = "shop") -> GroupStatus:
        async with self.inspector() as inspector:
            return next(one for one in await inspector.groups() if (one.topic, one.group) == (topic, group))

    async def done(self, topic: str, group: str = "shop") -> GroupStatus:
        """The group's counts, once nothing waits and nothing is being handled."""
        async with asyncio.timeout(PATIENCE):
            while True:
                status = await self.group(topic, group)
                if not (status.waiting or status.delayed or status.retrying or status.in_flight):
                    return status

    @contextlib.asynccontextmanager
    async def inspector(self) -> AsyncIterator[Inspector]:
        backend = open_backend(self.url)
        await backend.broker.connect()
        assert isinstance(backend.broker, Inspector)
        try:
            yield backend.broker
        finally:
            await backend.broker.close()

    def close(self) -> None:
        self.client.close()
        self.text.close()


class Came:
    """What came to a handler: the body, and its message."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[Any, Message]] = asyncio.Queue()

    def note(self, body: Any, message: Message) -> None:
        self._queue.put_nowait((body, message))

    async def next(self) -> tuple[Any, Message]:
        return await soon(self._queue.get())

    async def bodies(self, count: int) -> list[Any]:
        return [(await self.next())[0] for _ in range(count)]

    @property
    def nothing_more(self) -> bool:
        return self._queue.empty()


@contextlib.asynccontextmanager
async def working(*apps: Carteiro) -> AsyncIterator[None]:
    """Their workers, from being ready until they have stopped in good order."""
    running: list[asyncio.Task[None]] = []
    try:
        for app in apps:
            worker = asyncio.create_task(app.run())
            running.append(worker)
            ready = asyncio.create_task(app.ready())
            await soon(asyncio.wait((worker, ready), return_when=asyncio.FIRST_COMPLETED))
            if worker.done():
                ready.cancel()
                await worker
        yield
    finally:
        for app in apps:
            app.stop()
        for worker in running:
            await soon(asyncio.wait([worker]))
    for worker in running:
        worker.result()


def listen(app: Carteiro, source: str | Native, **options: Any) -> Came:
    """What comes to `app` from there from now on, whatever it looks like."""
    came = Came()

    @app.subscriber(source, **options)
    async def handle(body: Any, message: Message) -> None:
        came.note(body, message)

    return came
