"""Part 1: a handler, the broker's URL, and the life of `run`."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from carteiro import Carteiro, UnknownBackend
from tests.e2e.tour.stage import Stage, follow, soon


async def test_the_first_handler_answers_a_request(stage: Stage, part: Callable[[str], ModuleType]):
    hello = part("hello")
    await stage.run(hello.app)

    assert await soon(hello.app.request("greetings", "Ana")) == "hello, Ana"


async def test_the_first_handler_takes_what_is_published(stage: Stage, part: Callable[[str], ModuleType]):
    hello = part("hello")
    handled = follow(hello.app)
    await stage.run(hello.app)

    await hello.app.publish("greetings", "Ana")

    assert (await handled.next()).result == "hello, Ana"
    await stage.settled("greetings", "hello")


def test_without_a_word_the_broker_is_a_file_where_one_stands(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CARTEIRO_BROKER", raising=False)
    assert Carteiro("hello").url == "sqlite:///carteiro.db"


def test_the_environment_names_the_broker_unless_the_code_does(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CARTEIRO_BROKER", "memory://")
    assert Carteiro("hello").url == "memory://"
    assert Carteiro("hello", broker="sqlite:///shop.db").url == "sqlite:///shop.db"


async def test_the_embedded_broker_makes_its_file_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    async with Carteiro("hello"):
        assert (tmp_path / "carteiro.db").exists()


async def test_a_broker_that_is_not_installed_is_an_error_that_says_what_is():
    with pytest.raises(UnknownBackend, match=r"no backend for `gopher://`: installed are amqp, .*sqlite"):
        async with Carteiro("hello", broker="gopher://there"):
            pass


async def test_run_works_until_it_is_cancelled(stage: Stage):
    app = stage.app()

    @app.subscriber("greetings")
    async def greet(message: str) -> str:
        return f"hello, {message}"

    running = asyncio.create_task(app.run())
    await soon(app.ready())
    assert await soon(app.request("greetings", "Ana")) == "hello, Ana"

    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await soon(running)
    assert app.worker is None


async def test_the_same_app_can_run_again(stage: Stage):
    app = stage.app()

    @app.subscriber("greetings")
    async def greet(message: str) -> str:
        return f"hello, {message}"

    for name in ("Ana", "Rui"):
        await stage.run(app)
        assert await soon(app.request("greetings", name)) == f"hello, {name}"
        await stage.stop(app)


async def test_what_is_published_while_no_worker_runs_waits_for_one(stage: Stage):
    app = stage.app()
    handled = follow(app)

    @app.subscriber("greetings")
    async def greet(message: str) -> str:
        return f"hello, {message}"

    async with stage.app("publisher"), app:
        await app.publish("greetings", "Ana")
    await stage.run(app)

    assert (await handled.next()).result == "hello, Ana"
