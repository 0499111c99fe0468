"""A user who may do what the smallest rule says, and no more, lacks nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from carteiro.testing.conformance import BackendConformance
from tests.redis.stage import backend, soon
from tests.redis.test_urls import SMALLEST_RULE
from tests.servers.redis import RedisServer

pytestmark = pytest.mark.needs("redis")


@pytest.fixture(scope="module")
def permitted() -> Iterator[str]:
    """The URL of a user with the rule."""
    with RedisServer(aof="everysec", users=[f"ana on >secret {SMALLEST_RULE}"]) as server:
        yield server.url_with(user="ana", password="secret")


@pytest.mark.slow
class TestSmallestRule(BackendConformance):
    @pytest.fixture
    def backend_url(self, permitted: str) -> str:
        return permitted


async def test_the_doctor_finds_such_a_user_well(permitted: str):
    assert {check.status for check in await soon(backend(permitted).doctor())} == {"ok"}
