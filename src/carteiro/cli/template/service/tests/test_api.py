from collections.abc import AsyncIterator
from unittest.mock import AsyncMock

import pytest
from carteiro import BrokerUnavailable
from carteiro.testing import TestApp
from httpx import ASGITransport, AsyncClient

from service_name.api import api
from service_name.app import app

from .conftest import FakeGateway

TEXT = {"type": "send_text", "id": "a", "user_id": 1, "content": "hi"}


@pytest.fixture
async def client(t: TestApp) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(transport=ASGITransport(api), base_url="http://test") as client:
        yield client


async def test_a_message_is_accepted_and_then_sent(client: AsyncClient, t: TestApp, gateway: FakeGateway) -> None:
    answer = await client.post("/messages", json=TEXT)
    assert (answer.status_code, answer.json()) == (202, {"id": "a"})
    await t.idle()
    assert gateway.sent == [(1, "hi")]


@pytest.mark.parametrize("wrong", [{"type": "send_pigeon"}, {"content": ""}, {"user_id": "nobody"}])
async def test_what_does_not_fit_is_refused(client: AsyncClient, t: TestApp, wrong: dict[str, str]) -> None:
    answer = await client.post("/messages", json={**TEXT, **wrong})
    assert answer.status_code == 422
    assert t.messages("user_channel") == []


async def test_a_status_is_a_workers_reply(client: AsyncClient) -> None:
    answer = await client.get("/users/1/status")
    assert answer.json() == {"user_id": 1, "online": True}


async def test_a_broker_that_is_away_is_told_at_once(client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "publish", AsyncMock(side_effect=BrokerUnavailable("gone")))
    answer = await client.post("/messages", json=TEXT)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


async def test_the_health_names_every_queue(client: AsyncClient) -> None:
    answer = await client.get("/health/queue")
    assert answer.json()["status"] == "up"
    assert {queue["topic"] for queue in answer.json()["queues"]} == {"user_channel", "message_sent", "user_status"}
    for path in ("/health/live", "/health/ready"):
        assert (await client.get(path)).status_code == 200
