"""The SQLite backend passes the kit."""

from pathlib import Path

import pytest

from carteiro.testing.conformance import BackendConformance


class TestSqlite(BackendConformance):
    @pytest.fixture
    def backend_url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/broker.db"
