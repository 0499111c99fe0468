"""What every test stands on: no settings from outside, servers where it needs some, and Hypothesis without a clock."""

import os

import pytest
from hypothesis import settings

pytest_plugins = ["tests.servers.plugin"]

# A deadline would be a timing assertion on a machine that others use too. In CI the examples are the same each time.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CARTEIRO_")]:
        monkeypatch.delenv(name)
