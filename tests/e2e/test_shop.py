"""The shop as its users have it: a process of its own on the embedded broker, or on Redis, over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sqlite3
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from carteiro import Carteiro, Message
from carteiro.brokers import EMBEDDED
from carteiro.message import Subscription
from examples.shop import make_orders
from examples.shop.audit import End, Line, draw_up
from examples.shop.shop_process import ROOT, ShopProcess

PATIENCE = 60
"""Seconds after which a test that waits for something has failed."""


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@asynccontextmanager
async def opened(*arguments: str, **settings: str) -> AsyncIterator[httpx.AsyncClient]:
    shop = ShopProcess(arguments, settings)
    await shop.open()
    try:
        async with httpx.AsyncClient(base_url=shop.address, timeout=PATIENCE) as client:
            yield client
    finally:
        exit_code = await shop.close()
    assert exit_code == 0


async def place(client: httpx.AsyncClient, **basket: Any) -> str:
    answer = await client.post("/orders", json={"customer": "Zoë Müller", "sku": "wax", **basket})
    assert answer.status_code == 202, answer.text
    return answer.headers["location"]


async def standing(client: httpx.AsyncClient, order: str, status: str) -> dict[str, Any]:
    """The order, once it stands there and its whole story is in the book."""
    async with asyncio.timeout(PATIENCE):
        while True:
            answer = await client.get(order)
            found: dict[str, Any] = answer.json()
            if found.get("status") == status:
                return found


def stages(order: dict[str, Any]) -> list[str]:
    return [entry["stage"] for entry in order["history"]]


# -- over HTTP -----------------------------------------------------------------------------------------------------


async def test_an_order_is_answered_at_once_and_shipped_by_events():
    async with opened() as client:
        order = await standing(client, await place(client), "shipped")
        assert set(stages(order)) >= {"placed", "reserved", "paid", "shipped"}
        counts = (await client.get("/orders")).json()
    assert counts["counts"]["shipped"] == 1
    assert [one["id"] for one in counts["latest"]] == [order["id"]]


async def test_on_redis_an_order_is_answered_at_once_and_shipped_by_events(redis_url: str):
    async with opened(CARTEIRO_BROKER=redis_url) as client:
        order = await standing(client, await place(client), "shipped")
    assert set(stages(order)) >= {"placed", "reserved", "paid", "shipped"}


async def test_what_is_sold_out_is_cancelled():
    async with opened() as client:
        order = await standing(client, await place(client, sku="quill"), "cancelled")
    assert stages(order) == ["placed", "cancelled"]
    assert order["history"][-1]["detail"] == "quill: out of stock"


@pytest.mark.parametrize(
    ("card", "reason"),
    [("tok_refused", "Reject: the card was refused"), ("tok_offline", "BankDown: the bank does not answer")],
)
async def test_an_order_that_cannot_be_paid_gives_its_units_back(card: str, reason: str):
    async with opened(SHOP_FAILURE_RATE="0") as client:
        first = await standing(client, await place(client, sku="pen", quantity=20, card=card), "unpaid")
        await standing(client, await place(client, sku="pen", quantity=20), "shipped")
    assert first["history"][-1]["detail"] == reason


async def test_a_listener_that_is_down_stops_no_other():
    gave_up = asyncio.Event()
    listener = Carteiro("test", broker=EMBEDDED)

    @listener.subscriber("dlq_orders.shipped.newsletter")
    async def hear(message: Message) -> None:
        gave_up.set()

    async with listener.lifespan(), opened() as client:
        await standing(client, await place(client), "shipped")
        async with asyncio.timeout(PATIENCE):
            await gave_up.wait()


async def test_an_order_that_comes_twice_is_one_order():
    answers: asyncio.Queue[str] = asyncio.Queue()
    listener = Carteiro("test", broker=EMBEDDED)

    @listener.subscriber("orders.reserved")
    async def hear(message: Message) -> None:
        answers.put_nowait(message.id)

    order = {"id": "A-1", "customer": "Ana", "sku": "pen", "quantity": 2, "amount": "178.00", "card": "tok_visa"}
    async with listener.lifespan(), opened() as client, asyncio.timeout(PATIENCE):
        for _ in range(2):
            await listener.publish("orders.placed", order)
            await answers.get()
        await standing(client, "/orders/A-1", "shipped")
    with contextlib.closing(sqlite3.connect("shop.db")) as books:
        assert books.execute("SELECT units FROM shelf WHERE sku = 'pen'").fetchone() == (18,)
        assert books.execute("SELECT count(*) FROM payment").fetchone() == (1,)


async def test_a_department_that_was_closed_finds_its_work_when_it_opens_again():
    async with opened("--without", "payment") as client:
        place_of_order = await place(client)
        await standing(client, place_of_order, "reserved")
    async with opened() as client:
        await standing(client, place_of_order, "shipped")


async def test_what_is_no_order_is_told_so_at_once():
    async with opened() as client:
        wrong: list[dict[str, Any]] = [
            {"sku": "typewriter"},
            {"quantity": 0},
            {"quantity": "three"},
            {"customer": None},
            {"card": "4111"},
        ]
        for basket in wrong:
            answer = await client.post("/orders", json={"customer": "Ana", "sku": "wax", **basket})
            assert answer.status_code == 422, basket
        assert (await client.get("/orders/unheard-of")).status_code == 404
        assert sum((await client.get("/orders")).json()["counts"].values()) == 0


async def test_the_page_needs_nothing_from_elsewhere():
    async with opened() as client:
        page = await client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "The latest orders" in page.text
    assert "://" not in page.text


# -- the command ---------------------------------------------------------------------------------------------------


async def python(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_a_port_that_is_taken_is_said_and_another_one_found():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with opened("--port", str(port)) as client:
            assert client.base_url.port != port
            assert (await client.get("/")).status_code == 200


async def test_a_group_that_does_not_exist_cannot_be_left_out():
    code, _, err = await python("examples.shop", "--without", "accounting")
    assert code == 2
    assert "no group `accounting`" in err
    assert "invoice, logistics" in err


# -- the demo ------------------------------------------------------------------------------------------------------


def some_orders(numbers: Sequence[int]) -> str:
    """A file of some lines of `orders.jsonl`."""
    lines = make_orders.FILE.read_text().splitlines()
    some = Path("some.jsonl").absolute()
    some.write_text("\n".join(lines[number] for number in numbers))
    return str(some)


def test_the_orders_are_what_their_script_makes():
    assert make_orders.FILE.read_text() == "".join(f"{line}\n" for line in make_orders.lines())


@pytest.mark.slow
async def test_the_demo_accounts_for_each_of_a_thousand_orders(tmp_path: Path):
    code, out, err = await python("examples.shop.demo", "--json", "--keep", str(tmp_path / "kept"))
    assert code == 0, err
    account = json.loads(out)
    malformed = sum(one["orders"] for one in account["reasons"] if one["reason"].startswith("stock: InvalidBody"))
    out_of_stock = {one["reason"]: one["orders"] for one in account["reasons"] if one["outcome"] == "cancelled"}
    assert account["orders"] == sum(account["outcomes"].values()) == 1000
    assert malformed == 30
    assert out_of_stock == {"quill: out of stock": 25, "pen: out of stock": 10}
    assert account["outcomes"]["dead"] >= 60
    assert (tmp_path / "kept" / "carteiro.db").exists()


@pytest.mark.parametrize("system", ["sqlite", "redis"])
async def test_the_demo_loses_nothing_when_the_shop_is_killed(request: pytest.FixtureRequest, system: str):
    broker = request.getfixturevalue("redis_url") if system == "redis" else EMBEDDED
    options = ("--kill", "--broker", broker, "--orders", some_orders(range(150)))
    code, out, err = await python("examples.shop.demo", "--json", *options)
    assert code == 0, err
    account = json.loads(out)
    assert account["missing"] == account["twice"] == []
    assert sum(account["outcomes"].values()) == 150


async def test_the_demo_fails_and_names_the_orders_that_are_missing():
    orders = some_orders(range(8))
    code, out, err = await python("examples.shop.demo", "--without", "logistics", "--patience", "3", "--orders", orders)
    assert code == 1
    assert "NOT BALANCED" in out
    assert "orders have no end:" in err
    assert 'line 2: {"id": "A0002"' in err


async def test_the_demo_takes_no_broker_that_is_in_use(redis_url: str):
    async with Carteiro("other", broker=redis_url) as other:
        await other.connection.broker.declare([Subscription("orders.placed", "other")])
    code, _, err = await python("examples.shop.demo", "--broker", redis_url)
    assert code == 1
    assert "the broker is in use" in err


async def test_the_demo_passes_on_why_the_shop_did_not_open():
    code, _, err = await python("examples.shop.demo", "--without", "accounting")
    assert code == 1
    assert "the shop has no group `accounting`" in err


def test_an_order_with_two_ends_is_not_balanced():
    line = Line(1, '{"id": "A1"}', "message-1")
    account = draw_up([line], {"A1": [End("shipped")]}, {"message-1": [End("dead", "payment: refused")]})
    assert account.twice == [line]
    assert not account.balanced
