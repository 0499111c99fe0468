"""A place on the session's servers, and one on a server of the test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.redis_natives.stage import Place
from tests.servers.redis import RedisServer, with_query


@pytest.fixture
def place(each_redis_url: str) -> Iterator[Place]:
    """The session's server, of each version that is installed."""
    place = Place(each_redis_url)
    yield place
    place.close()


@pytest.fixture
def here(redis_url: str) -> Iterator[Place]:
    """The session's server, for what does not depend on its version."""
    place = Place(redis_url)
    yield place
    place.close()


@pytest.fixture
def own_place() -> Iterator[Place]:
    """A server of the test's own, to be harmed."""
    with RedisServer() as server:
        place = Place(with_query(server.url, prefix="shop"))
        yield place
        place.close()
