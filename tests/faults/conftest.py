"""What the tests of faults share: a broker of their own, and what goes on around it.

They run on each system that is a broker of several processes. A module or a test that is about one alone says which:
it has a fixture `system` of its own, or `parametrize("system", …)`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.faults.scene import Scene, scene


@pytest.fixture(params=["sqlite", "redis"])
def system(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "broker.db"


@pytest.fixture
def url(request: pytest.FixtureRequest, system: str, file: Path) -> str:
    """Of a broker that nobody harms."""
    return str(request.getfixturevalue("redis_url")) if system == "redis" else f"sqlite:///{file}"


@pytest_asyncio.fixture
async def here(url: str) -> AsyncIterator[Scene]:
    async with scene(url) as opened:
        yield opened
