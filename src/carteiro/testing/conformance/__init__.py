"""The conformance kit: what any backend, also a stranger's, must hold, as pytest classes. Needs pytest-asyncio.

from carteiro.testing.conformance import BackendConformance

class TestMine(BackendConformance):
    @pytest.fixture
    def backend_url(self, tmp_path):
        return f"mine:///{tmp_path}/broker"
"""

import pytest

pytest.register_assert_rewrite(f"{__name__}.rig", f"{__name__}.themes")

from carteiro.testing.conformance.suite import BackendConformance  # noqa: E402 (its asserts are to be rewritten)

__all__ = ["BackendConformance"]
