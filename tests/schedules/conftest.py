"""Each test of schedules runs on the broker in memory, on the one in a file, on Redis and on RabbitMQ."""

import pytest

from carteiro import scheduling
from carteiro.schedules import firing
from tests.e2e.tour.conftest import broker_url, stage

__all__ = ["broker_url", "short_claims", "stage"]


@pytest.fixture
def short_claims(monkeypatch: pytest.MonkeyPatch) -> float:
    """What a dead process had claimed is fired by another after so many seconds."""
    lease = 1.5
    monkeypatch.setattr(firing, "LEASE", lease)
    monkeypatch.setattr(scheduling, "LEASE", lease)
    return lease
