"""The connection: a server that stands still, subscriptions on an idle one, and requests that are too large for one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from carteiro.backends.redis import scripts, settling
from carteiro.errors import Unencodable
from carteiro.message import Action, Outcome, Write
from carteiro.testing.clock import VirtualClock
from tests.redis.stage import ORDERS, backend, connected, outgoing, settle, soon, take
from tests.servers.redis import RedisServer, with_query

pytestmark = pytest.mark.needs("redis")

MB = 1024 * 1024


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as started:
        yield started


# -- a server that stands still ---------------------------------------------------------------------------------------


async def test_a_close_gives_up_on_a_server_that_reads_no_more(server: RedisServer):
    broker = backend(with_query(server.url, timeout="0.3"), VirtualClock()).broker
    await broker.connect()
    await broker.declare([ORDERS])
    wire = broker._server.link._wire
    assert wire is not None
    server.freeze()
    messages = [outgoing(b"." * 10 * MB) for _ in range(3)]
    publishing = asyncio.create_task(broker.publish(messages))
    await soon(_full(wire._transport))
    publishing.cancel()
    await asyncio.wait([publishing])

    await soon(broker.close())

    server.thaw()


async def _full(transport: asyncio.WriteTransport) -> None:
    # Looked at in each round of the loop: after its 0.3 s the publish gives up, and nothing is left to send.
    while not transport.get_write_buffer_size():  # noqa: ASYNC110 (it tells nobody)
        await asyncio.sleep(0)


async def test_calls_to_a_server_that_reads_no_more_wait_instead_of_filling_the_memory(server: RedisServer):
    async with connected(with_query(server.url, timeout="60"), ORDERS, clock=VirtualClock()) as broker:
        server.freeze()
        try:
            link = broker._server.link
            calls = [asyncio.create_task(link.command("SET", "filler", b"." * MB)) for _ in range(100)]
            await asyncio.sleep(0)
            wire = link._wire
            assert wire is not None
            assert wire._transport.get_write_buffer_size() < 6 * MB
            assert len(wire.waiting) < 50
        finally:
            server.thaw()
        assert [bytes(await soon(call)) for call in calls] == [b"OK"] * 100


# -- subscriptions ----------------------------------------------------------------------------------------------------


async def test_a_subscription_on_a_connection_that_was_idle_does_not_end_it(redis_url: str):
    async with connected(redis_url, ORDERS, clock=VirtualClock()) as broker:
        link = broker._server.link
        wire, watch = link._wire, link._watch
        assert wire is not None
        assert watch is not None
        watch.cancel()
        wire.answered -= 3600.0  # as if an hour had passed
        link._look(wire)

        consumer = broker.consume([ORDERS])
        publishing = asyncio.create_task(broker.publish([outgoing(b"hello")]))
        fetched = await soon(consumer.fetch({ORDERS: 1}))
        await publishing

        assert [one.message.body for one in fetched] == [b"hello"]
        assert link.connections == 1


# -- settles that take more than one request --------------------------------------------------------------------------


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many outcomes each settle had; a settle takes 4,000 bytes."""
    monkeypatch.setattr(settling, "AT_ONCE", 4000)
    monkeypatch.setattr(settling, "LARGEST", 16_000)
    return []


async def test_a_settle_of_much_goes_in_several_requests(
    redis_url: str, requests: list[int], monkeypatch: pytest.MonkeyPatch
):
    async with connected(redis_url, ORDERS) as broker:
        consumer = broker.consume([ORDERS])
        await broker.publish([outgoing() for _ in range(11)])
        taken = await take(consumer, 11)
        run = broker._server.run

        async def counted(script: scripts.Script, *request: Any, **options: Any) -> Any:
            if script is scripts.SETTLE:
                requests.append(len(request[2]))
            return await run(script, *request, **options)

        monkeypatch.setattr(broker._server, "run", counted)
        outcomes = [
            Outcome(one, Action.ACK, writes=(Write(f"result:{number}", b"." * 1500),))
            for number, one in enumerate(taken[:10])
        ]
        assert await settle(consumer, taken[10:]) == []
        lost = await consumer.settle([*outcomes, Outcome(taken[10], Action.ACK)])

        assert lost == [taken[10]]
        assert requests == [0, 3, 3, 3, 1]
        assert len(await broker.store.scan("result:")) == 10


@pytest.mark.usefixtures("requests")
async def test_an_outcome_too_large_for_one_step_is_refused_with_the_way_out(redis_url: str):
    async with connected(redis_url, ORDERS) as broker:
        consumer = broker.consume([ORDERS])
        await broker.publish([outgoing()])
        (one,) = await take(consumer)
        with pytest.raises(Unencodable, match="emit less from one message"):
            await consumer.settle([Outcome(one, Action.ACK, emits=[outgoing(b"." * 9000) for _ in range(2)])])
        assert await settle(consumer, [one]) == []
