"""Idempotency: whatever the codec, however long the handler runs, wherever the store is."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

from carteiro import Carteiro, Idempotency
from carteiro.testing import TestApp


async def test_the_key_is_found_in_a_msgpack_body():
    app = Carteiro("shop", codec="msgpack")
    charged: list[int] = []

    @app.subscriber("payments", idempotency=Idempotency(key="order_id"))
    async def charge(order_id: int, amount: int) -> None:
        charged.append(order_id)

    async with TestApp(app) as t:
        await t.publish_many("payments", [{"order_id": order, "amount": 10} for order in (1, 1, 2)])
        await t.advance(60)
        assert t.dead() == []

    assert charged == [1, 2]


async def test_the_type_is_found_in_a_msgpack_body():
    app = Carteiro("shop", codec="msgpack")
    sent: list[str] = []

    @app.subscriber("mail", type="letter")
    async def letter(body: dict[str, str]) -> None:
        sent.append("letter")

    @app.subscriber("mail", type="parcel")
    async def parcel(body: dict[str, str]) -> None:
        sent.append("parcel")

    async with TestApp(app) as t:
        await t.publish("mail", {"type": "parcel"})
        await t.idle()
        assert t.dead() == []

    assert sent == ["parcel"]


async def test_a_claim_holds_for_as_long_as_its_handler_runs():
    app = Carteiro("shop")
    charged: list[float] = []

    @app.subscriber("payments", idempotency=Idempotency(key="order_id", ttl=timedelta(seconds=30)))
    async def charge(body: dict[str, int]) -> None:
        charged.append(app.clock.time())
        await app.clock.sleep(100)

    async with TestApp(app, patience=0) as t:
        await t.publish_many("payments", [{"order_id": 1}, {"order_id": 1}])
        await t.advance(300)
        group = t.groups()["payments", "shop"]
        assert (group.waiting, group.delayed, group.in_flight, group.dead) == (0, 0, 0, 0)

    assert len(charged) == 1


async def test_with_a_store_apart_the_marks_are_in_that_store_only(tmp_path: Path):
    app = Carteiro("shop", f"sqlite:///{tmp_path}/broker.db", store=f"sqlite:///{tmp_path}/store.db")
    charged = asyncio.Event()

    @app.subscriber("payments", idempotency=Idempotency(key="order_id"))
    async def charge(body: dict[str, int]) -> None:
        charged.set()

    async with app:
        async with app.lifespan():
            await app.publish("payments", {"order_id": 1})
            await charged.wait()
        store, brokers_own = app.connection.store, app.connection.broker.store
        assert store is not None
        assert brokers_own is not None
        assert list(await store.scan("")) == ["idempotency:payments [shop]:1"]
        assert list(await brokers_own.scan("")) == []
