"""A web service and its end: graceful, before it began, and that of its worker alone."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from carteiro import Carteiro
from tests.e2e.tour.stage import follow, soon
from tests.e2e.web import WebService
from tests.servers.process import ServerDown

STOPPED = (0, -signal.SIGTERM)
"""uvicorn stops in good order, and then raises the signal again."""


@pytest.fixture(params=["memory", "sqlite", "redis", "rabbitmq"])
def broker_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        return "memory://"
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/broker.db"
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


def test_a_request_that_is_under_way_at_the_end_is_answered_and_its_order_is_safe(broker_url: str, tmp_path: Path):
    go_on = tmp_path / "go-on"
    with WebService(repr(broker_url)) as service, ThreadPoolExecutor() as pool:
        assert service.place(1) == 202
        service.until_logged("handled 1")
        under_way = pool.submit(service.place, 2, wait_for=str(go_on))
        service.until_logged("placing 2")
        os.kill(service.pid, signal.SIGTERM)
        service.until_logged("Shutting down")
        go_on.touch()
        assert under_way.result() == 202
        assert service.exit_code in STOPPED
        handled = "handled 2" in service.log(1000)
        assert "Traceback" not in service.log(1000)
    if not handled and broker_url != "memory://":  # else it is in the broker, for the next who comes
        asyncio.run(handles(broker_url, b"2"))


async def publish(url: str, bodies: Sequence[str]) -> None:
    async with Carteiro("other", url) as app:
        await app.publish_many("orders", bodies)


async def handles(url: str, body: bytes) -> None:
    """Fail unless the message comes."""
    app = Carteiro("shop", url)
    app.subscriber("orders")(nothing)
    ended = follow(app)
    running = asyncio.create_task(app.run())
    try:
        assert (await ended.next()).message.body == body
    finally:
        app.stop()
        await soon(running)


async def nothing(order: int) -> None: ...


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ('"redis://127.0.0.1:1"', "`redis://127.0.0.1:1` cannot be reached"),
        ('"memory://", lifespan=lambda app: partial(open, "no/such/file")()', "No such file or directory"),
    ],
)
def test_a_service_that_cannot_start_ends_and_says_why(option: str, said: str):
    with pytest.raises(ServerDown) as ended, WebService(option):
        pass
    assert "ended with exit code 3" in str(ended.value)
    assert said in str(ended.value)


def test_a_worker_that_dies_leaves_the_service_up_for_its_orchestrator_to_ask(tmp_path: Path):
    file = tmp_path / "broker.db"
    url = f"sqlite:///{file}"
    with WebService(repr(url)) as service:
        assert service.place(1) == 202
        service.until_logged("handled 1")
        assert service.probes() == (200, 200)
        service.freeze()
        asyncio.run(publish(url, ["x" * 10_000] * 2000))  # more than it remembers
        with file.open("r+b") as opened:
            opened.seek(4096)
            opened.write(b"no database" * (file.stat().st_size // 11))
        service.thaw()
        service.until_logged("the worker has died")
        said = service.health()
        assert said["status"] == "down"
        assert said["reasons"][0].startswith("the worker has died: BrokerCorrupted: ")
        assert service.probes() == (503, 503)


def test_a_service_without_workers_ends_in_good_order_too():
    with WebService('"memory://"', lifespan="partial(app.lifespan, workers=False)") as service:
        assert service.place(1) == 202
        assert service.probes() == (200, 200)
        os.kill(service.pid, signal.SIGTERM)
        assert service.exit_code in STOPPED
        assert "Traceback" not in service.log(1000)
