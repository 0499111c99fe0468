"""A place on the session's servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rabbitmq_natives.stage import Place


@pytest.fixture
def place(each_rabbitmq_url: str) -> Iterator[Place]:
    """The session's server, of each version that is installed."""
    place = Place(each_rabbitmq_url)
    yield place
    place.close()


@pytest.fixture
def here(rabbitmq_url: str) -> Iterator[Place]:
    """The session's server, for what does not depend on its version."""
    place = Place(rabbitmq_url)
    yield place
    place.close()
