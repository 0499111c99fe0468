"""What goes wrong around an app: a start that fails or is broken off, replies of others, requests that get none."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType

import pytest

from carteiro import BrokerUnavailable, Carteiro, InvalidHandler, NotConnected, Unroutable
from carteiro.backends.memory import MemoryBackend
from carteiro.backends.memory.state import State
from carteiro.message import Subscription
from carteiro.ports.broker import Consumer
from carteiro.ports.clock import SYSTEM_CLOCK
from carteiro.testing import TestApp


async def double(number: int) -> int:
    return 2 * number


class SlowStart:
    """An app's lifespan that opens when it is told to."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.may_go_on = asyncio.Event()

    @asynccontextmanager
    async def __call__(self, app: Carteiro) -> AsyncIterator[None]:
        self.begun.set()
        await self.may_go_on.wait()
        yield


async def test_a_start_that_fails_leaves_no_connection_open(monkeypatch: pytest.MonkeyPatch):
    backend = MemoryBackend(State(SYSTEM_CLOCK), "memory://")
    closed: list[bool] = []

    async def refuse(*_: object) -> None:
        raise BrokerUnavailable("it is read-only")

    async def close() -> None:
        closed.append(True)

    monkeypatch.setattr(backend.broker, "declare", refuse)
    monkeypatch.setattr(backend.broker, "close", close)
    with pytest.raises(BrokerUnavailable, match="read-only"):
        async with Carteiro("shop", backend):
            pass

    assert closed == [True]


async def test_a_handler_that_its_process_cannot_import_stops_the_app_from_starting(monkeypatch: pytest.MonkeyPatch):
    only_here = ModuleType("only_here")
    exec("def thumbnail(path: str) -> None: ...", only_here.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", only_here)
    app = Carteiro("shop", "memory://")
    app.subscriber("images", runs_in="process", concurrency=1)(only_here.thumbnail)

    with pytest.raises(InvalidHandler, match=r"`thumbnail` .*process \(No module named 'only_here'\)"):
        async with app.lifespan():
            raise AssertionError("it must not start")


async def test_a_service_that_is_cancelled_while_its_worker_starts_leaves_no_worker_behind():
    start = SlowStart()
    app = Carteiro("shop", "memory://", lifespan=start)
    app.subscriber("numbers")(double)

    async def serve() -> None:
        async with app.lifespan():
            raise AssertionError("it must not start")

    serving = asyncio.create_task(serve())
    await start.begun.wait()
    before = asyncio.all_tasks()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving

    assert [task.get_name() for task in before - {asyncio.current_task()} if not task.done()] == []
    with pytest.raises(NotConnected):
        _ = app.connection


async def test_a_stop_that_comes_before_the_worker_is_not_lost():
    start = SlowStart()
    app = Carteiro("shop", "memory://", lifespan=start)
    app.subscriber("numbers")(double)
    running = asyncio.create_task(app.run())
    await start.begun.wait()

    app.stop()
    start.may_go_on.set()

    await running


async def test_a_stop_while_nothing_runs_is_not_for_the_next_run():
    app = Carteiro("shop", "memory://")
    app.subscriber("numbers")(double)
    app.stop()
    running = asyncio.create_task(app.run())
    await app.ready()

    assert await app.request("numbers", 21) == 42

    app.stop()
    await running


async def test_connections_of_one_app_do_not_take_each_others_replies(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/shop.db"
    server, client = Carteiro("shop", url), Carteiro("client", url)
    server.subscriber("numbers")(double)
    running = asyncio.create_task(server.run())
    await server.ready()

    assert await asyncio.to_thread(client.request_sync, "numbers", 21) == 42  # by a connection that stays open
    async with client:
        answers = await asyncio.gather(*(client.request("numbers", number) for number in range(20)))

    assert answers == [2 * number for number in range(20)]
    server.stop()
    await running


async def test_replies_come_in_though_the_broker_was_away_when_the_inbox_opened(monkeypatch: pytest.MonkeyPatch):
    app = Carteiro("shop", "memory://")
    app.subscriber("numbers")(double)
    async with TestApp(app) as t:
        broker = app.connection.broker
        consume = broker.consume

        def away_at_first(subscriptions: Sequence[Subscription]) -> Consumer:
            monkeypatch.setattr(broker, "consume", consume)
            raise BrokerUnavailable("away")

        monkeypatch.setattr(broker, "consume", away_at_first)

        assert await t.request("numbers", 21) == 42


async def test_a_request_that_nobody_handles_speaks_of_the_request():
    async with Carteiro("client", "memory://") as app:
        with pytest.raises(Unroutable, match=r"^no group handles `nobody`: start a worker that subscribes to it$"):
            await app.request("nobody", 1)
