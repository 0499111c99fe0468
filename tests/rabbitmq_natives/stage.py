"""What these tests hold in hand: apps on a server, and a client that knows nothing of carteiro."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import pika
from pika.adapters.blocking_connection import BlockingChannel

from carteiro import Carteiro
from carteiro.message import DeadLetter
from carteiro.ports.broker import GroupStatus, Inspector
from carteiro.ports.registry import open_backend
from tests.redis_natives.stage import PATIENCE


class Got(NamedTuple):
    """What a plain client got."""

    body: bytes
    properties: pika.BasicProperties
    exchange: str
    routing_key: str


class Place:
    """A server, as a plain client and as apps see it. Queues and exchanges are the test's own, by `name`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.prefix = parse_qs(urlsplit(url).query)["prefix"][0]
        self.connection = pika.BlockingConnection(pika.URLParameters(url.partition("?")[0]))
        self.client = self.connection.channel()
        self.client.confirm_delivery()

    def name(self, what: str) -> str:
        return f"{self.prefix}-{what}"

    def app(self, name: str = "shop", **options: Any) -> Carteiro:
        return Carteiro(name, self.url, **options)

    def queue(self, what: str, *, kind: str = "quorum", **arguments: Any) -> str:
        """One that a plain client has declared."""
        self.client.queue_declare(self.name(what), durable=True, arguments={"x-queue-type": kind, **arguments})
        return self.name(what)

    def publish(
        self, queue: str, body: bytes, *, exchange: str = "", headers: Mapping[str, Any] | None = None, **more: Any
    ) -> None:
        """As a plain client does, persistent and confirmed; `queue` is the routing key. `more` are properties."""
        properties = pika.BasicProperties(delivery_mode=2, headers=None if headers is None else dict(headers), **more)
        self.client.basic_publish(exchange, queue, body, properties)

    def get(self, queue: str) -> Got | None:
        """What a plain client gets and acks."""
        method, properties, body = self.client.basic_get(queue, auto_ack=True)
        if method is None or properties is None or body is None:
            return None
        return Got(body, properties, method.exchange, method.routing_key)

    def bodies(self, queue: str) -> list[bytes]:
        got: list[bytes] = []
        while (one := self.get(queue)) is not None:
            got.append(one.body)
        return got

    def depth(self, queue: str) -> int:
        return int(self.client.queue_declare(queue, passive=True).method.message_count)

    def other_channel(self) -> BlockingChannel:
        """For what the server may close it over."""
        return self.connection.channel()

    async def until(self, holds: Callable[[], Any]) -> None:
        """Return once this is so."""
        async with asyncio.timeout(PATIENCE):
            while not holds():  # noqa: ASYNC110 (the server tells nobody)
                await asyncio.sleep(0.005)

    async def dead(self, count: int = 1) -> list[DeadLetter]:
        """The dead letters, once there are so many."""
        async with asyncio.timeout(PATIENCE), self.inspector() as inspector:
            while True:
                letters = list(await inspector.dead_letters())
                if len(letters) >= count:
                    return letters

    async def groups(self) -> dict[tuple[str, str], GroupStatus]:
        async with self.inspector() as inspector:
            return {(one.topic, one.group): one for one in await inspector.groups()}

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
        self.connection.close()
