"""What the tests of faults share: a broker's file of their own, and what goes on around it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.faults.scene import Scene, scene


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "broker.db"


@pytest.fixture
def url(file: Path) -> str:
    return f"sqlite:///{file}"


@pytest_asyncio.fixture
async def here(url: str) -> AsyncIterator[Scene]:
    async with scene(url) as opened:
        yield opened
