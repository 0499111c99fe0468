"""Schedules from code that has no event loop."""

from datetime import UTC
from pathlib import Path

import pytest

from carteiro import Carteiro, ConfigurationError, every


@pytest.fixture
def app(tmp_path: Path) -> Carteiro:
    return Carteiro("shop", f"sqlite:///{tmp_path}/shop.db")


def test_a_schedule_is_added_paused_resumed_fired_and_removed(app: Carteiro) -> None:
    @app.task
    def clean() -> None: ...

    added = app.schedules.add_sync("clean", every("5m"), clean.s(), misfire="skip")
    app.schedules.pause_sync("clean")
    app.schedules.resume_sync("clean")
    sent = app.schedules.fire_sync("clean")

    assert added.next is not None
    assert added.next.tzinfo is UTC
    assert app.tasks.result(sent).status_sync() == "pending"
    assert app.schedules.remove_sync("clean")
    assert not app.schedules.remove_sync("clean")


def test_a_name_that_is_not_there_is_told(app: Carteiro) -> None:
    with pytest.raises(ConfigurationError, match="has no schedule `clean`: it has none"):
        app.schedules.pause_sync("clean")
