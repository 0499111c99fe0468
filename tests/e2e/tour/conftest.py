"""Each test of the tour runs on the broker in memory, on the one in a file, on Redis and on RabbitMQ."""

from __future__ import annotations

import importlib
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.e2e.tour.stage import Counts, Stage


@pytest.fixture(params=["memory", "sqlite", "redis", "rabbitmq"])
def broker_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/broker.db?synchronous=normal"
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
async def stage(request: pytest.FixtureRequest, broker_url: str, tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(broker_url)
    if broker_url.startswith("amqp:"):
        counts = Counts(request.getfixturevalue("rabbitmq_server"), broker_url.rpartition("prefix=")[2])
        stage = Stage(broker_url, counts, f"sqlite:///{tmp_path}/store.db")
    yield stage
    await stage.close()


@pytest.fixture
def part(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a file of `docs/tour`, anew, in an empty folder, with the stage's broker in the environment."""
    monkeypatch.setenv("CARTEIRO_BROKER", stage.url)
    monkeypatch.chdir(tmp_path)

    def load(name: str) -> ModuleType:
        monkeypatch.delitem(sys.modules, f"docs.tour.{name}", raising=False)
        return importlib.import_module(f"docs.tour.{name}")

    return load
