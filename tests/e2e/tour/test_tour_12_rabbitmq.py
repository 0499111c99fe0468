"""Part 12 for RabbitMQ: the tour's own file, fed by a plain client and read by one, and in a test without a server."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from carteiro.testing import TestApp
from tests.e2e.tour.stage import Stage, follow
from tests.servers.rabbitmq import RabbitServer

QUEUES = ("errors", "br-users", "reports", "kept", "jobs", "done", "log")
EXCHANGES = ("logs", "topics", "broadcasts", "documents", "archive")


@pytest.fixture
def tour(rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("CARTEIRO_BROKER", rabbitmq_url)
    monkeypatch.delitem(sys.modules, "docs.tour.rabbitmq_objects", raising=False)
    return importlib.import_module("docs.tour.rabbitmq_objects")


@pytest.fixture
def client(rabbitmq_server: RabbitServer) -> Iterator[BlockingChannel]:
    connection = pika.BlockingConnection(pika.URLParameters(rabbitmq_server.url))
    channel = connection.channel()
    yield channel
    for queue in QUEUES:
        channel.queue_delete(queue)
    for exchange in EXCHANGES:
        channel.exchange_delete(exchange)
    connection.close()


async def test_a_plain_client_feeds_and_reads_the_tours_app(
    rabbitmq_url: str, client: BlockingChannel, tour: ModuleType
):
    stage = Stage(rabbitmq_url)
    app = tour.app
    ended = follow(app)
    await stage.run(app)
    try:
        client.queue_declare("log", durable=True)
        client.queue_bind("log", "logs", "info")
        client.basic_publish("logs", "error", b"disk full")
        assert {(await ended.next()).result for _ in range(2)} == {"error: disk full", "kept disk full"}
        client.basic_publish("topics", "user.7.pt", b"Zoe")
        client.basic_publish("topics", "user.7.br", b"Ana")
        assert (await ended.next()).result == "user.7.br: Ana"
        client.basic_publish("documents", "", b"Q3", pika.BasicProperties(headers={"kind": "report"}))
        assert (await ended.next()).result == "filed Q3"
        client.basic_publish("", "jobs", b'{"id": 7, "sku": "A-7"}', pika.BasicProperties(priority=9))
        assert (await ended.next()).message.topic == "queue:jobs"
        await tour.announce()
        announced = {(await ended.next()).result for _ in range(3)}
        assert announced == {"heard everyone", "error: disk full", "kept disk full"}
        await stage.settled("queue:jobs")
    finally:
        await stage.stop(app)
        await stage.close()
    assert client.basic_get("log", auto_ack=True)[2] == b'"order 7"'
    assert client.basic_get("done", auto_ack=True)[2] == b'{"id":7,"sku":"A-7"}'


async def test_the_tours_app_is_tested_without_a_server(tour: ModuleType):
    ended = follow(tour.app)
    async with TestApp(tour.app) as t:
        await tour.announce()
        await t.publish(tour.documents, "Q3", headers={"kind": "report"})
        await t.publish(tour.RabbitExchange("topics", type="topic").to("user.7.br"), "Ana")
        await t.publish(tour.RabbitQueue("jobs"), {"id": 7, "sku": "A-7"})
        await t.idle()
        assert t.published(tour.RabbitQueue("done")) == [tour.Order(id=7, sku="A-7")]
        assert t.published(tour.logs.to("info")) == ["order 7"]
    results = {str(one.result) for one in await ended.many(6)}
    assert results > {"heard everyone", "error: disk full", "kept disk full", "filed Q3", "user.7.br: Ana"}
    assert ended.silent
