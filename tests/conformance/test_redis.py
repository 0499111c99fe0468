"""The Redis backend passes the kit, on each version of Redis and Valkey that is installed."""

import pytest

from carteiro.testing.conformance import BackendConformance


class TestRedis(BackendConformance):
    @pytest.fixture
    def backend_url(self, each_redis_url: str) -> str:
        return each_redis_url
