"""A publish whose answer is lost, and what happens when it is tried again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from carteiro.errors import BrokerUnavailable
from carteiro.message import Outgoing, Subscription, new_id
from carteiro.ports.registry import open_backend
from tests.servers.redis import RedisServer, with_query

ORDERS = Subscription("orders", "stock")


class DeafRelay:
    """Passes on what goes to the server, and once `deaf` none of its answers: these end the connection."""

    def __init__(self, port: int) -> None:
        self.deaf = False
        self._to = port

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def stop(self) -> None:
        self._server.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._to)

        async def requests() -> None:
            while data := await reader.read(65536):
                to_server.write(data)
            to_server.close()

        passing = asyncio.create_task(requests())
        while data := await from_server.read(65536):
            if self.deaf:
                break
            writer.write(data)
        writer.close()
        await passing


@pytest.fixture
async def relay(redis_server: RedisServer) -> AsyncIterator[tuple[DeafRelay, str]]:
    relay = DeafRelay(redis_server.port)
    port = await relay.start()
    yield relay, with_query(f"redis://127.0.0.1:{port}", prefix=new_id())
    relay.stop()


async def test_messages_whose_answer_was_lost_are_published_again_only_once(relay: tuple[DeafRelay, str]) -> None:
    deaf, url = relay
    broker = open_backend(url).broker
    await broker.connect()
    await broker.declare([ORDERS])
    messages = [Outgoing(new_id(), "orders", b"%d" % number, None, {}, "cause") for number in range(3)]
    deaf.deaf = True
    with pytest.raises(BrokerUnavailable):
        await broker.publish(messages)
    deaf.deaf = False

    await broker.publish(messages)
    await broker.publish([Outgoing(new_id(), "orders", b"next", None, {}, "cause")])

    consumer = broker.consume([ORDERS])
    came: list[bytes] = []
    while not came or came[-1] != b"next":
        came += [delivery.message.body for delivery in await consumer.fetch({ORDERS: 10})]
    assert came == [b"0", b"1", b"2", b"next"]
    await broker.close()
