"""The kit on Redis."""

import pytest

from carteiro.testing.conformance import BackendConformance


class TestRedis(BackendConformance):
    @pytest.fixture
    def backend_url(self, redis_url: str) -> str:
        return redis_url
