"""Part 10, a web service: the tour's own file, asked over HTTP, on each broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from types import ModuleType
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from carteiro import Carteiro
from carteiro.web import health
from tests.e2e.tour.stage import Stage, follow, soon

ORDER = {"id": 7, "sku": "A-1"}


def client(api: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://shop")


def lifespan_of(api: FastAPI) -> Any:
    """As the server runs it."""
    return api.router.lifespan_context(api)


async def test_an_order_over_http_is_handled_by_the_worker_of_the_service(part: Callable[[str], ModuleType]):
    tour = part("web_service")
    ended = follow(tour.app)
    async with lifespan_of(tour.api), client(tour.api) as http:
        assert (await http.post("/orders", json=ORDER)).status_code == 202
        handled = await ended.next()
        assert (handled.message.topic, handled.error) == ("orders.placed", None)
        refused = await http.post("/orders", json={"id": "seven"})
        assert refused.status_code == 422
    assert ended.silent


async def test_its_health_tells_of_its_queue(part: Callable[[str], ModuleType]):
    tour = part("web_service")
    ended = follow(tour.app)
    async with lifespan_of(tour.api), client(tour.api) as http:
        await http.post("/orders", json=ORDER)
        await ended.next()
        for path in ("/health/live", "/health/ready"):
            answer = await http.get(path)
            assert (answer.status_code, answer.json()) == (200, {"status": "up", "reasons": []})
        answer = await http.get("/health/queue")
        (queue,) = answer.json()["queues"]
        assert (answer.status_code, queue["topic"], queue["group"]) == (200, "orders.placed", "shop")
        assert (queue["status"], queue["consumes"], queue["depth"]["dead"]) == ("up", True, 0)
    assert (await http_get(tour.api, "/health/ready")).status_code == 503


async def test_without_workers_a_service_only_publishes(stage: Stage):
    worker, service = stage.app(), stage.app()
    for app in (worker, service):
        app.subscriber("orders.placed")(nothing)
    ended = follow(worker)
    api = FastAPI(lifespan=partial(service.lifespan, workers=False))
    api.include_router(health(service))
    async with lifespan_of(api), client(api) as http:
        await service.publish("orders.placed", ORDER)
        (queue,) = (await http.get("/health/queue")).json()["queues"]
        assert (queue["status"], queue["consumes"]) == ("up", False)
        assert queue["depth"]["waiting"] == 1
        await stage.run(worker)
        assert (await ended.next()).error is None
        assert (await http.get("/health/ready")).status_code == 200


async def test_the_lifespan_goes_together_with_ones_own(stage: Stage):
    app = stage.app()
    app.subscriber("orders.placed")(nothing)
    ended = follow(app)
    events: list[str] = []

    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncIterator[dict[str, Any]]:
        events.append("open")
        async with app.lifespan(api):
            events.append("consumes")
            yield {"pool": "of connections"}
        events.append("close")

    api = FastAPI(lifespan=lifespan)
    async with lifespan_of(api) as state:
        assert state == {"pool": "of connections"}
        await app.publish("orders.placed", ORDER)
        await ended.next()
    assert events == ["open", "consumes", "close"]


async def test_a_startup_that_fails_leaves_nothing_running(stage: Stage):
    @asynccontextmanager
    async def resources(app: Carteiro) -> AsyncIterator[None]:
        raise ConnectionError("no database")
        yield

    app = stage.app(lifespan=resources)
    app.subscriber("orders.placed")(nothing)
    api = FastAPI(lifespan=app.lifespan)
    before = asyncio.all_tasks()
    with pytest.raises(ConnectionError, match="no database"):
        await soon(lifespan_of(api).__aenter__())
    assert {task for task in asyncio.all_tasks() - before if not task.done()} == set()
    assert app.workers == {}


async def nothing(body: object) -> None: ...


async def http_get(api: FastAPI, path: str) -> httpx.Response:
    async with client(api) as http:
        return await http.get(path)
