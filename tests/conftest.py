"""What every test stands on: no settings from outside, servers where it needs some, and Hypothesis without a clock."""

import contextlib
import os
from typing import Any

import psutil
import pytest
from hypothesis import Phase, settings

pytest_plugins = ["tests.servers.plugin"]

# A deadline would be a timing assertion on a machine that others use too. In CI the examples are the same each time,
# and one that fails is told as it is: making it smaller may take five minutes, and looks as if the test hung.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, phases=set(Phase) - {Phase.shrink, Phase.explain})
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CARTEIRO_")]:
        monkeypatch.delenv(name)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Stop what a process of pytest-xdist had started when it died of a test that hung; servers stop by themselves."""
    if error:
        its_own = {
            "PYTEST_XDIST_TESTRUNUID": node.workerinput["testrunuid"],
            "PYTEST_XDIST_WORKER": node.workerinput["workerid"],
        }.items()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if its_own <= process.environ().items():
                    process.kill()
