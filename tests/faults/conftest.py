"""What the tests of faults share: a broker of their own, and what goes on around it.

They run on each system that is a broker of several processes. A module or a test that is about one alone says which:
it has a fixture `system` of its own, or `parametrize("system", …)`.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.faults.scene import Queues, Scene, scene
from tests.faults.task_scene import TaskScene, task_scene
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import with_query


@pytest.fixture(params=["sqlite", "redis", "rabbitmq"])
def system(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "broker.db"


@pytest.fixture(scope="session")
def rabbitmq_vhost(rabbitmq_server: RabbitServer) -> str:
    """A virtual host of these tests' own, so that what waits for its time there is theirs."""
    rabbitmq_server.add_vhost("faults")
    return "faults"


@pytest.fixture
def queues(request: pytest.FixtureRequest, system: str) -> Queues | None:
    """What tells of messages that AMQP is silent of; None where the broker tells."""
    if system != "rabbitmq":
        return None
    server, vhost = request.getfixturevalue("rabbitmq_server"), request.getfixturevalue("rabbitmq_vhost")
    return Queues(server, vhost, f"test-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def url(request: pytest.FixtureRequest, system: str, file: Path, queues: Queues | None) -> str:
    """Of a broker that nobody harms."""
    if queues is not None:
        return with_query(queues.server.url_with(vhost=queues.vhost), prefix=queues.prefix)
    return str(request.getfixturevalue("redis_url")) if system == "redis" else f"sqlite:///{file}"


@pytest_asyncio.fixture
async def here(url: str, queues: Queues | None) -> AsyncIterator[Scene]:
    async with scene(url, queues=queues) as opened:
        yield opened


@pytest_asyncio.fixture
async def tasks(here: Scene, system: str, tmp_path: Path) -> AsyncIterator[TaskScene]:
    """On RabbitMQ, which keeps no state, beside a store in a file."""
    store = f"sqlite:///{tmp_path / 'store.db'}" if system == "rabbitmq" else None
    async with task_scene(here, tmp_path, store=store) as opened:
        yield opened
