"""The in-memory backend passes the kit."""

import uuid

import pytest

from carteiro.testing.conformance import BackendConformance


class TestMemory(BackendConformance):
    @pytest.fixture
    def backend_url(self) -> str:
        return f"memory://{uuid.uuid4().hex}"
