"""The RabbitMQ backend passes the kit, on each version that is installed."""

import pytest

from carteiro.testing.conformance import BackendConformance


class TestRabbitMQ(BackendConformance):
    @pytest.fixture
    def backend_url(self, each_rabbitmq_url: str) -> str:
        return each_rabbitmq_url
