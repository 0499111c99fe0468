"""Part 12 for Redis: the tour's own file, fed by a plain client and read by one, and in a test without a server."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from carteiro.testing import TestApp
from tests.e2e.tour.stage import Stage, follow, soon
from tests.servers.redis import RedisServer


@pytest.fixture
def tour(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("CARTEIRO_BROKER", redis_url)
    monkeypatch.delitem(sys.modules, "docs.tour.redis_objects", raising=False)
    return importlib.import_module("docs.tour.redis_objects")


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Any]:
    names = ("jobs", "log", "orders", "orders.done")
    with redis_server.client() as client:
        client.delete(*names)
        yield client
        client.delete(*names)


async def test_a_plain_client_feeds_and_reads_the_tours_app(redis_url: str, client: Any, tour: ModuleType):
    stage = Stage(redis_url)
    app = tour.app
    ended = follow(app)
    await stage.run(app)
    try:
        client.publish("test", "hello")
        assert (await ended.next()).result == "heard hello"
        client.publish("news.br", "olá")
        assert (await ended.next()).result == "news.br: olá"
        client.rpush("jobs", '{"id": 7, "sku": "A-7"}')
        await ended.next()
        client.xadd("orders", {"id": 7, "sku": "A-7"})
        assert (await ended.next()).result == "billed 7"
        await stage.settled("list:jobs")
    finally:
        await stage.stop(app)
        await stage.close()
    assert client.lrange("log", 0, -1) == ['"order 7"']
    assert [entry["body"] for _, entry in client.xrange("orders.done")] == ['{"id":7,"sku":"A-7"}']


async def test_the_tours_app_is_tested_without_a_server(tour: ModuleType):
    ended = follow(tour.app)
    async with TestApp(tour.app) as t:
        await t.publish(tour.RedisChannel("news.br"), "olá")
        await t.publish(tour.RedisList("jobs"), {"id": 7, "sku": "A-7"})
        await t.idle()
        assert t.published(tour.RedisStream("orders.done")) == [tour.Order(id=7, sku="A-7")]
        assert t.published(tour.RedisList("log")) == ["order 7"]
    assert (await soon(ended.next())).result == "news.br: olá"
