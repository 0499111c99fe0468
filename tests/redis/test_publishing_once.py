"""A publish whose answer is lost, and what happens when it is tried again."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, Literal

import pytest

from carteiro.backends.redis import publishing, scripts, sender
from carteiro.errors import BrokerUnavailable, Unencodable
from carteiro.message import Outgoing, Subscription, new_id
from tests.redis.stage import ORDERS, connected, outgoing, soon, take
from tests.servers.redis import RedisServer, with_query

Fate = Literal["answer lost", "request lost", "late"]
"""Of a publish: the server has it, never gets it, or gets it only when it is let through. No answer comes back."""


class Relay:
    """Stands before the server, and ends the connection of those publishes that have a fate."""

    def __init__(self, port: int) -> None:
        self.fates: list[Fate] = []
        self.publishes = 0
        self.passed_on = asyncio.Event()
        """Set once a publish has come by, of which the answers are held while `hold`."""
        self.hold = False
        self._held: list[tuple[asyncio.StreamWriter, bytes]] = []
        self._late: list[tuple[bytes, asyncio.StreamWriter, asyncio.StreamReader]] = []
        self._to = port

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def stop(self) -> None:
        self._server.close()
        for _, writer, _ in self._late:
            writer.close()

    async def let_through(self) -> None:
        """The server gets what was late."""
        for data, writer, reader in self._late:
            writer.write(data)
            await soon(reader.read(1))
            writer.close()
        self._late.clear()

    def release(self) -> None:
        """Answers are held no longer."""
        self.hold = False
        for writer, data in self._held:
            writer.write(data)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._to)
        answers = asyncio.create_task(self._answers(from_server, writer))
        while data := await reader.read(65536):
            if scripts.PUBLISH.sha.encode() in data:
                self.publishes += 1
                self.passed_on.set()
                if self.fates:
                    await self._meet(self.fates.pop(0), data, answers, from_server, to_server)
                    writer.close()
                    return
            to_server.write(data)
        to_server.close()
        await answers

    async def _meet(
        self,
        fate: Fate,
        data: bytes,
        answers: asyncio.Task[None],
        from_server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        answers.cancel()
        await asyncio.wait([answers])
        if fate == "late":
            self._late.append((data, to_server, from_server))
            return
        if fate == "answer lost":
            to_server.write(data)
            await soon(from_server.read(1))
        to_server.close()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if self.hold:
                self._held.append((writer, data))
            else:
                writer.write(data)
        writer.close()


@pytest.fixture
async def relay(redis_server: RedisServer) -> AsyncIterator[tuple[Relay, str]]:
    relay = Relay(redis_server.port)
    port = await relay.start()
    yield relay, with_query(f"redis://127.0.0.1:{port}", prefix=new_id())
    relay.stop()


def batch(name: str, count: int = 3, **options: str) -> list[Outgoing]:
    return [outgoing(b"%s%d" % (name.encode(), number), **options) for number in range(count)]


def bodies(*batches: Sequence[Outgoing]) -> list[bytes]:
    return [message.body for messages in batches for message in messages]


async def fails(publish: Awaitable[object]) -> None:
    with pytest.raises(BrokerUnavailable):
        await soon(publish)


async def test_messages_whose_answer_was_lost_are_published_again_only_once(relay: tuple[Relay, str]) -> None:
    between, url = relay
    async with connected(url, ORDERS) as broker:
        await broker.publish(batch("warm", 1))
        messages = batch("a")
        between.fates = ["answer lost"]
        await fails(broker.publish(messages))

        await broker.publish(messages)
        await broker.publish(batch("next", 1))

        came = await take(broker.consume([ORDERS]), 5)
        assert [one.message.body for one in came] == [b"warm0", b"a0", b"a1", b"a2", b"next0"]


FATES: list[Fate] = ["answer lost", "request lost", "late"]


@pytest.mark.parametrize("again", ["ab", "ba", "bba"])
@pytest.mark.parametrize("fates", list(itertools.product(FATES, FATES)), ids=" then ".join)
async def test_of_publishes_that_overlap_in_trouble_each_is_published_once(
    relay: tuple[Relay, str], fates: tuple[Fate, Fate], again: str
) -> None:
    between, url = relay
    async with connected(url, ORDERS) as broker:
        await broker.publish(batch("warm", 1))
        batches = {"a": batch("a"), "b": batch("b")}
        between.fates = list(fates)
        await fails(broker.publish(batches["a"]))
        await fails(broker.publish(batches["b"]))

        for name in again:
            await broker.publish(batches.pop(name) if name in batches else batch("c", 1))
        await between.let_through()
        await broker.publish(batch("next", 1))

        expected = ["warm0", "a0", "a1", "a2", "b0", "b1", "b2", "next0"] + ["c0"] * (len(again) - 2)
        came = await take(broker.consume([ORDERS]), len(expected))
        assert sorted(one.message.body.decode() for one in came) == sorted(expected)


async def test_what_is_late_comes_no_more_once_another_batch_is_published(relay: tuple[Relay, str]) -> None:
    between, url = relay
    async with connected(url, ORDERS) as broker:
        await broker.publish(batch("warm", 1))
        messages = batch("a")
        between.fates = ["late", "late"]
        await fails(broker.publish(messages))
        await fails(broker.publish(messages))
        await broker.publish(batch("next", 1))

        await between.let_through()
        await broker.publish(messages)

        came = await take(broker.consume([ORDERS]), 5)
        assert [one.message.body for one in came] == [b"warm0", b"next0", b"a0", b"a1", b"a2"]


async def test_a_message_of_the_same_id_to_another_topic_is_another_message(relay: tuple[Relay, str]) -> None:
    between, url = relay
    returns = Subscription("returns", "shop", lease=60.0)
    async with connected(url, ORDERS, returns) as broker:
        await broker.publish(batch("warm", 1))
        between.fates = ["answer lost"]
        await fails(broker.publish([outgoing(b"placed", id="order-1")]))

        await broker.publish([outgoing(b"returned", topic="returns", id="order-1")])

        assert [one.message.body for one in await take(broker.consume([ORDERS]), 2)] == [b"warm0", b"placed"]
        (came,) = await take(broker.consume([returns]), 1, returns)
        assert came.message.body == b"returned"


async def test_a_retry_tells_what_no_group_gets_as_the_first_try_would_have(relay: tuple[Relay, str]) -> None:
    between, url = relay
    async with connected(url, ORDERS) as broker:
        await broker.publish(batch("warm", 1))
        to_nobody = outgoing(b"hello?", topic="nowhere")
        messages = [*batch("a"), to_nobody]
        between.fates = ["answer lost", "answer lost"]
        await fails(broker.publish(messages))
        await fails(broker.publish(messages))

        assert await broker.publish(messages) == [to_nobody]


async def test_a_publish_that_was_cancelled_under_way_is_published_once_if_it_is_tried_again(
    relay: tuple[Relay, str],
) -> None:
    between, url = relay
    async with connected(url, ORDERS) as broker:
        await broker.publish(batch("warm", 1))
        messages = batch("a")
        between.passed_on.clear()
        between.hold = True
        publishing_it = asyncio.create_task(broker.publish(messages))
        await soon(between.passed_on.wait())
        publishing_it.cancel()
        await asyncio.wait([publishing_it])
        between.release()

        await broker.publish(batch("next", 1))
        await broker.publish(messages)
        await broker.publish(batch("last", 1))

        came = await take(broker.consume([ORDERS]), 6)
        assert [one.message.body for one in came] == [b"warm0", b"a0", b"a1", b"a2", b"next0", b"last0"]


async def test_a_publisher_that_the_server_has_forgotten_goes_on(
    relay: tuple[Relay, str], redis_server: RedisServer
) -> None:
    between, url = relay
    async with connected(url, ORDERS) as broker:
        await broker.publish(batch("warm", 1))
        messages = batch("a")
        between.fates = ["request lost"]
        await fails(broker.publish(messages))
        prefix = url.partition("prefix=")[2]
        with redis_server.client() as client:
            keys = client.keys(f"*{prefix}*:publisher:*")
            assert client.delete(*keys) == 1

        await broker.publish(messages)
        await broker.publish(batch("next", 1))

        came = await take(broker.consume([ORDERS]), 5)
        assert [one.message.body for one in came] == [b"warm0", b"a0", b"a1", b"a2", b"next0"]


# -- more than one request --------------------------------------------------------------------------------------------


@pytest.fixture
def small_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (publishing, sender):
        monkeypatch.setattr(module, "AT_ONCE", 4000)


@pytest.mark.parametrize("fates", [(), ("answer lost",), ("request lost", "answer lost"), ("late", "late")])
@pytest.mark.usefixtures("small_requests")
async def test_a_publish_that_takes_several_requests_is_published_once_and_in_order(
    relay: tuple[Relay, str], fates: tuple[Fate, ...]
) -> None:
    between, url = relay
    async with connected(url, ORDERS) as broker:
        await broker.publish(batch("warm", 1))
        messages = [outgoing(b"%d %s" % (number, b"." * 1500)) for number in range(10)]
        for fate in fates:  # of the first request, and then of the second, if the first turns out to be published
            between.fates = [fate]
            await fails(broker.publish(messages))

        await broker.publish(messages)
        await between.let_through()

        assert between.publishes >= 6
        came = await take(broker.consume([ORDERS]), 11)
        assert [one.message.body for one in came[1:]] == bodies(messages)


@pytest.mark.usefixtures("small_requests")
async def test_a_publish_of_several_requests_goes_on_where_it_was_interrupted(
    relay: tuple[Relay, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    between, url = relay
    async with connected(url, ORDERS) as broker:
        await broker.publish(batch("warm", 1))
        messages = [outgoing(b"%d %s" % (number, b"." * 1500)) for number in range(10)]
        server_run = broker._server.run
        requests = itertools.count(1)

        async def run(script: scripts.Script, *request: Any, **options: Any) -> Any:
            if script is scripts.PUBLISH and next(requests) in (3, 5):
                between.fates = ["answer lost"]
            return await server_run(script, *request, **options)

        monkeypatch.setattr(broker._server, "run", run)
        await fails(broker.publish(messages))
        await fails(broker.publish(messages))
        await broker.publish(messages)

        came = await take(broker.consume([ORDERS]), 11)
        assert [one.message.body for one in came[1:]] == bodies(messages)


@pytest.mark.usefixtures("small_requests")
async def test_what_cannot_be_published_is_known_before_any_of_it_is(
    relay: tuple[Relay, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    between, url = relay
    monkeypatch.setattr(publishing, "LARGEST", 2000)
    async with connected(url, ORDERS) as broker:
        with pytest.raises(Unencodable):
            await broker.publish([*(outgoing(b"." * 1500) for _ in range(5)), outgoing(b"." * 2500)])
    assert between.publishes == 0


# -- what is remembered -----------------------------------------------------------------------------------------------


async def test_publishes_that_nobody_tries_again_are_forgotten_at_last(relay: tuple[Relay, str]) -> None:
    between, url = relay
    async with connected(url, ORDERS) as broker:
        await broker.publish(batch("warm", 1))
        count = sender.REMEMBERED + 10
        between.fates = ["request lost"] * count
        for _ in range(count):
            await fails(broker.publish(batch("a")))

        assert len(broker._sender._interrupted) == sender.REMEMBERED
        await broker.publish(batch("a"))
        assert broker._sender._interrupted == []


async def test_a_publish_that_was_never_sent_is_not_remembered(relay: tuple[Relay, str]) -> None:
    between, url = relay
    async with connected(url, ORDERS) as broker:
        await broker.publish(batch("warm", 1))
        between.fates = ["request lost"]
        await fails(broker.publish(batch("a")))
        between.stop()
        await fails(broker.publish(batch("b")))

        assert [one.messages[0].body for one in broker._sender._interrupted] == [b"a0"]
