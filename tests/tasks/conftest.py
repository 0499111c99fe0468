"""Each test of tasks runs on the broker in memory, on the one in a file, on Redis and on RabbitMQ."""

from tests.e2e.tour.conftest import broker_url, stage

__all__ = ["broker_url", "stage"]
