"""A publisher's own ids on a broker that remembers none: the store of the app does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from carteiro import Carteiro


@pytest.mark.parametrize("given", [None, "sqlite:///elsewhere.db"], ids=["embedded", "given"])
async def test_the_same_id_is_handled_once_within_the_window(
    rabbitmq_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None
):
    monkeypatch.chdir(tmp_path)
    app, handled = Carteiro("shop", broker=rabbitmq_url, store=given), asyncio.Queue[int]()

    @app.subscriber("orders")
    async def handle(order: int) -> None:
        handled.put_nowait(order)

    running = asyncio.create_task(app.run())
    await app.ready()
    for order in (1, 1, 2):
        await app.publish("orders", order, id=f"order-{order}")
    await app.publish_many("orders", [2, 1, 3], id=lambda order: f"order-{order}")

    async with asyncio.timeout(20):
        assert [await handled.get() for _ in range(3)] == [1, 2, 3]
        await app.publish("orders", 4)
        assert await handled.get() == 4
    app.stop()
    await running
    assert (tmp_path / ("carteiro.db" if given is None else "elsewhere.db")).exists()


async def test_a_store_is_made_for_those_only_who_give_ids(
    rabbitmq_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    async with Carteiro("shop", broker=rabbitmq_url) as app:
        await app.publish("orders", 1)
        assert not (tmp_path / "carteiro.db").exists()

        await app.publish("orders", 1, id="order-1")
        assert (tmp_path / "carteiro.db").exists()
