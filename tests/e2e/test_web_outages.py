"""A real server that goes away and comes back, as the health of a service tells of it: up, down or degraded, up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.web import WebService
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisServer

pytestmark = pytest.mark.slow


@pytest.fixture(
    params=[
        pytest.param(RedisServer, marks=pytest.mark.needs("redis"), id="redis"),
        pytest.param(RabbitServer, marks=pytest.mark.needs("rabbitmq"), id="rabbitmq"),
    ]
)
def server(request: pytest.FixtureRequest) -> Iterator[Any]:
    with request.param() as server:
        yield server


def test_a_service_without_an_outbox_is_down_while_its_broker_is_and_up_again_after(server: Any):
    with WebService(repr(server.url)) as service:
        assert service.place(-1) == 202
        service.until(lambda: service.health()["queues"][0]["last_error"], "telling of the failure")
        up = service.until_health("up")
        assert up["queues"][0]["last_error"]["text"] == "no order -1"
        assert up["queues"][0]["consumers"] == 1
        assert service.probes() == (200, 200)

        server.stop()
        down = service.until_health("down")
        assert "cannot be reached" in down["reasons"][0] or "no RabbitMQ at" in down["reasons"][0]
        assert down["queues"][0]["status"] == "down"
        assert down["queues"][0]["depth"]["waiting"] is None
        assert service.probes() == (200, 503)
        assert service.place(2) == 503
        assert service.until_health("down")["brokers"][0]["breaker"]["state"] != "closed"
        assert "guest:guest" not in str(service.health())

        server.start()
        service.until(lambda: service.place(3) == 202, "publishing again")
        service.until_logged("handled 3")
        service.until_health("up")
        assert service.probes() == (200, 200)


def test_a_service_with_an_outbox_is_degraded_and_serves_while_its_broker_is_away(server: Any):
    with WebService(repr(server.url), "outbox=True") as service:
        assert service.place(1) == 202
        service.until_logged("handled 1")
        server.stop()
        service.until(lambda: service.place(2) == 202, "publishing")
        away = service.until_health("degraded")
        service.until(lambda: service.health()["brokers"][0]["outbox"]["waiting"] >= 1, "keeping it")
        away = service.health()
        assert (away["status"], away["brokers"][0]["status"]) == ("degraded", "degraded")
        assert service.probes() == (200, 200)

        server.start()
        service.until_logged("handled 2")
        back = service.until_health("up")
        assert back["brokers"][0]["outbox"] == {"waiting": 0, "oldest": None, "refused": 0}


def test_a_server_that_hangs_does_not_take_the_answers_with_it(server: Any):
    with WebService(repr(server.url)) as service:
        service.until_health("up")
        server.freeze()
        hung = service.until_health("degraded", "down")
        assert hung["queues"][0]["status"] in ("degraded", "down")
        assert service.probes()[0] == 200
        server.thaw()
        service.place(1)
        service.until_logged("handled 1")
        service.until_health("up")
