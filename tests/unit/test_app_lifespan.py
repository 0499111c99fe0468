"""What an app holds while its handlers run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from carteiro import Carteiro
from carteiro.engine.worker import Worker
from carteiro.testing import TestApp


async def test_the_lifespan_is_open_while_handlers_run_and_closed_after():
    events: list[str] = []

    @asynccontextmanager
    async def resources(app: Carteiro) -> AsyncIterator[None]:
        events.append(f"open {app.name}")
        yield
        events.append("close")

    app = Carteiro("shop", lifespan=resources)

    @app.subscriber("orders")
    async def handle(order: int) -> None:
        events.append(f"order {order}")

    async with TestApp(app) as t:
        await t.publish("orders", 7)
        await t.idle()

    assert events == ["open shop", "order 7", "close"]


async def test_a_lifespan_that_fails_stops_the_app_from_starting():
    @asynccontextmanager
    async def resources(app: Carteiro) -> AsyncIterator[None]:
        raise ConnectionError("no database")
        yield

    app = Carteiro("shop", "memory://", lifespan=resources)

    @app.subscriber("orders")
    async def handle(order: int) -> None: ...

    with pytest.raises(ConnectionError, match="no database"):
        await app.run()


async def test_a_service_whose_worker_dies_says_so_in_its_log(
    monkeypatch: pytest.MonkeyPatch,
):
    app = Carteiro("shop", "memory://")
    breaks = asyncio.Event()

    @app.subscriber("orders")
    async def handle(order: int) -> None: ...

    async def until_it_breaks(worker: Worker) -> None:
        await breaks.wait()
        raise RuntimeError("the intake broke")

    monkeypatch.setattr(Worker, "run_until_stopped", until_it_breaks)
    said = asyncio.Event()
    monkeypatch.setattr(logging.getLogger("carteiro.app"), "critical", lambda *args, **options: said.set())

    async def serve() -> None:
        async with app.lifespan():
            breaks.set()
            await said.wait()

    with pytest.raises(RuntimeError, match="the intake broke"):
        await serve()
