"""Part 3: what a handler is given besides its message, and when that is closed."""

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import fast_depends
import fastapi
import pytest

from carteiro import Depends, Retry, constant
from carteiro.testing import TestApp
from tests.e2e.tour.stage import Stage, follow, soon

ORDER = {"id": 7, "sku": "A-7", "amount": "9.90"}


def rows(path: Path) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(path / "orders.db")) as connection:
        return connection.execute("SELECT id, sku, amount FROM orders").fetchall()


async def test_the_tours_session_is_committed_before_the_message_is_acked(
    stage: Stage, part: Callable[[str], ModuleType], tmp_path: Path
):
    dependencies = part("dependencies")
    handled = follow(dependencies.app)
    await stage.run(dependencies.app)

    await dependencies.app.publish("orders.placed", ORDER)

    assert (await handled.next()).error is None
    assert rows(tmp_path) == [(7, "A-7", "9.90")]


async def test_the_tours_session_is_rolled_back_when_the_handler_fails(
    stage: Stage, part: Callable[[str], ModuleType], tmp_path: Path
):
    dependencies = part("dependencies")
    app = dependencies.app

    @app.subscriber("orders.doubted", retry=Retry(attempts=1))
    async def doubt(session: Annotated[Any, Depends(dependencies.session)]) -> None:
        session.add(dependencies.Row(id=8, sku="B-8", amount="1"))
        await session.flush()
        raise ValueError("is it real?")

    handled = follow(app)
    await stage.run(app)

    await app.publish("orders.doubted", {})

    assert isinstance((await handled.next()).error, ValueError)
    assert rows(tmp_path) == []


async def test_dependencies_nest_are_called_once_a_message_and_close_in_reverse(stage: Stage):
    app = stage.app()
    story: list[str] = []

    def settings() -> dict[str, str]:
        story.append("settings")
        return {"name": "db"}

    async def engine(settings: Annotated[dict[str, str], Depends(settings)]) -> AsyncIterator[str]:
        story.append("engine opens")
        yield settings["name"]
        story.append("engine closes")

    def session(engine: Annotated[str, Depends(engine)], again: Annotated[Any, Depends(settings)]) -> Iterator[str]:
        story.append(f"session on {engine} opens")
        yield "session"
        story.append("session closes")

    @app.subscriber("orders")
    async def store(order: int, session: Annotated[str, Depends(session)]) -> None:
        story.append(f"order {order}")

    handled = follow(app)
    await stage.run(app)

    for order in (1, 2):
        await app.publish("orders", order)
        await handled.next()

    one = ["settings", "engine opens", "session on db opens", "order {}", "session closes", "engine closes"]
    assert story == [line.format(order) for order in (1, 2) for line in one]


@pytest.mark.parametrize("depends", [fastapi.Depends, fast_depends.Depends], ids=["fastapi", "fast_depends"])
async def test_the_depends_of_other_frameworks_is_accepted_as_it_is(stage: Stage, depends: Callable[..., Any]):
    app = stage.app()

    def tax() -> int:
        return 23

    async def price(net: int, tax: Any) -> int:
        return net + int(tax)

    price.__annotations__["tax"] = Annotated[int, depends(tax)]
    app.subscriber("prices")(price)
    await stage.run(app)

    assert await soon(app.request("prices", 100)) == 123


async def test_a_dependency_that_fails_fails_the_message(stage: Stage):
    app = stage.app()
    tries: list[int] = []

    def flaky() -> str:
        tries.append(1)
        if len(tries) == 1:
            raise ConnectionError("no database")
        return "db"

    @app.subscriber("orders", retry=Retry(attempts=2, backoff=constant(0)))
    async def store(db: Annotated[str, Depends(flaky)]) -> str:
        return db

    handled = follow(app)
    await stage.run(app)

    await app.publish("orders", {})

    assert isinstance((await handled.next()).error, ConnectionError)
    assert (await handled.next()).result == "db"


async def test_a_dependency_can_be_overridden_in_tests(stage: Stage):
    app = stage.app()

    def database() -> str:
        raise AssertionError("tests have none")

    @app.subscriber("orders")
    async def store(db: Annotated[str, Depends(database)]) -> str:
        return db

    async with TestApp(app, overrides={database: lambda: "fake"}) as t:
        assert await t.request("orders", {}) == "fake"
    app.overrides[database] = lambda: "kept"
    async with TestApp(app) as t:
        assert await t.request("orders", {}) == "kept"
