"""An app's life: connecting once however often it is entered, one loop, the lifespan of a web service."""

import asyncio
import threading
import uuid
from pathlib import Path

import pytest

from carteiro import BrokerUnavailable, Carteiro, ConfigurationError, NotConnected


@pytest.fixture
def app() -> Carteiro:
    app = Carteiro("shop", f"memory://{uuid.uuid4().hex}")

    @app.subscriber("greetings")
    async def greet(name: str) -> str:
        return f"hello, {name}"

    return app


async def test_it_can_be_entered_within_itself_and_closes_with_the_last(app: Carteiro):
    async with app:
        connection = app.connection
        async with app:
            assert app.connection is connection
        await app.publish("greetings", "Ana")
    with pytest.raises(NotConnected):
        await app.publish("greetings", "Ana")


async def test_entered_at_the_same_time_it_connects_once(app: Carteiro):
    async with asyncio.TaskGroup() as tasks:
        entered = [tasks.create_task(app.__aenter__()) for _ in range(5)]
    assert {id(task.result().connection) for task in entered} == {id(app.connection)}
    for _ in entered:
        await app.__aexit__(None, None, None)
    with pytest.raises(NotConnected):
        _ = app.connection


async def test_running_it_shares_the_connection_of_whoever_entered_it(app: Carteiro):
    async with app:
        connection = app.connection
        running = asyncio.create_task(app.run())
        await app.ready()
        assert app.connection is connection
        app.stop()
        await running
        await app.publish("greetings", "Ana")


async def test_a_stop_is_for_the_run_that_was_called_before_it_though_that_has_not_begun(app: Carteiro):
    running = asyncio.create_task(app.run())
    app.stop()
    async with asyncio.timeout(30):
        await running


async def test_a_stop_while_nothing_runs_is_for_no_later_run(app: Carteiro):
    app.stop()
    running = asyncio.create_task(app.run())
    await app.ready()
    assert await app.request("greetings", "Ana") == "hello, Ana"
    app.stop()
    await running


async def test_after_a_broker_that_was_away_it_can_be_entered_again(tmp_path: Path):
    app = Carteiro("shop", f"sqlite:///{tmp_path}/missing/shop.db")
    with pytest.raises(BrokerUnavailable, match="missing"):
        async with app:
            pass
    (tmp_path / "missing").mkdir()
    async with app:
        assert await app.publish("greetings", "Ana")


async def test_in_use_on_one_loop_it_cannot_be_entered_on_another(app: Carteiro):
    async def enter() -> None:
        async with app:
            pass

    async with app:
        with pytest.raises(ConfigurationError, match="app `shop` is in use on another event loop of this process"):
            await asyncio.to_thread(asyncio.run, enter())


def test_one_loop_after_another_is_no_matter(tmp_path: Path):
    app = Carteiro("shop", f"sqlite:///{tmp_path}/shop.db")

    @app.subscriber("greetings")
    async def greet(name: str) -> str:
        return f"hello, {name}"

    async def ask() -> str:
        running = asyncio.create_task(app.run())
        await app.ready()
        try:
            answer: str = await app.request("greetings", "Ana")
            return answer
        finally:
            app.stop()
            await running

    assert [asyncio.run(ask()) for _ in range(2)] == ["hello, Ana"] * 2


async def test_its_lifespan_consumes_while_the_service_is_up(app: Carteiro):
    async with app.lifespan(None):
        assert app.worker is not None
        assert await app.request("greetings", "Ana") == "hello, Ana"
    assert app.worker is None


async def test_its_lifespan_without_workers_only_publishes(app: Carteiro):
    async with app.lifespan(None, workers=False):
        assert app.worker is None
        await app.publish("greetings", "Ana", mandatory=True)


async def test_its_lifespan_fails_where_the_worker_cannot_start():
    app = Carteiro("shop", "memory://")
    with pytest.raises(ConfigurationError, match="has no subscribers"):
        async with app.lifespan(None):
            raise AssertionError("the service must not start")


async def test_an_error_of_the_service_passes_through_its_lifespan(app: Carteiro):
    with pytest.raises(ZeroDivisionError):
        async with app.lifespan(None):
            raise ZeroDivisionError
    assert app.worker is None


def test_code_without_a_loop_publishes_and_asks_through_a_connection_of_its_own(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/shop.db"
    server = Carteiro("shop", url)
    started, may_end = threading.Event(), threading.Event()

    @server.subscriber("double")
    async def double(number: int) -> int:
        return 2 * number

    async def serve() -> None:
        running = asyncio.create_task(server.run())
        await server.ready()
        started.set()
        await asyncio.to_thread(may_end.wait)
        server.stop()
        await running

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    started.wait()
    client = Carteiro("client", url)
    try:
        assert client.publish_sync("double", 1, mandatory=True)
        assert len(client.publish_many_sync("double", [1, 2])) == 2
        assert client.request_sync("double", 21, returns=int) == 42
    finally:
        may_end.set()
        thread.join()


def test_a_broker_that_is_away_is_an_error_of_the_sync_call_and_not_of_the_next(tmp_path: Path):
    app = Carteiro("shop", f"sqlite:///{tmp_path}/missing/shop.db")
    with pytest.raises(BrokerUnavailable):
        app.publish_sync("greetings", "Ana")
    (tmp_path / "missing").mkdir()
    assert app.publish_sync("greetings", "Ana")
