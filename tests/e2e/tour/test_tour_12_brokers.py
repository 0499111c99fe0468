"""Part 12, several brokers in one app: the tour's own file, on two files as it stands there."""

from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from carteiro.testing import TestApp
from tests.e2e.tour.stage import follow, soon


@pytest.fixture
def tour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "docs.tour.brokers", raising=False)
    return importlib.import_module("docs.tour.brokers")


async def test_a_message_goes_from_one_broker_to_the_other(tour: ModuleType):
    ended = follow(tour.app)
    running = asyncio.create_task(tour.app.run())
    await soon(tour.app.ready())
    try:
        await tour.app.publish("orders.placed", 7)
        handled = await ended.many(2)
        assert [one.message.topic for one in handled] == ["orders.placed", "stock.moved"]
    finally:
        tour.app.stop()
        await soon(running)


async def test_the_tours_app_is_tested_on_brokers_in_memory(tour: ModuleType):
    async with TestApp(tour.app) as t:
        await t.publish("orders.placed", 7)
        await t.idle()
        assert [(one.topic, one.broker) for one in t.messages()] == [
            ("orders.placed", "default"),
            ("audit", "events"),
            ("stock.moved", "events"),
        ]
