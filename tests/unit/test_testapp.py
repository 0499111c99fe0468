"""The double itself: how it ends, what it raises, what it shows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from pydantic import BaseModel

from carteiro import Batch, Carteiro, Emit, NotConnected, Reject, Retry, Topic, constant
from carteiro.engine.worker import Worker
from carteiro.testing import TestApp

if TYPE_CHECKING:
    from nowhere import Receipt  # type: ignore[import-not-found]  # pyright: ignore[reportMissingImports]

FOREVER = 1e6
TENTHS = [n / 10 for n in range(1, 20, 3)]


def waiting_for_ever() -> tuple[Carteiro, list[str]]:
    """An app whose handler of `slow` never ends by itself, and what happened to the handler."""
    app, events = Carteiro("shop"), list[str]()

    @app.subscriber("slow")
    async def slow(order: int) -> None:
        events.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            events.append("interrupted")

    return app, events


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", TENTHS)
@pytest.mark.parametrize("before", [0, 0.1, 0.7])
async def test_a_timeout_fires_when_just_its_time_has_passed(timeout: float, before: float):
    app = Carteiro("shop")

    @app.subscriber("slow", timeout=timeout, retry=Retry(attempts=1))
    async def slow(order: int) -> None:
        await app.clock.sleep(FOREVER)

    async with TestApp(app, patience=0) as t:
        await t.advance(before)
        await t.publish("slow", 1)
        await t.advance(timeout)
        assert [letter.reason.partition(":")[0] for letter in t.dead("slow")] == ["HandlerTimeout"]


@pytest.mark.parametrize("wait", TENTHS)
@pytest.mark.parametrize("before", [0, 0.1, 0.7])
async def test_a_batch_is_handed_over_when_just_its_wait_has_passed(wait: float, before: float):
    app, seen = Carteiro("shop"), list[list[int]]()

    @app.subscriber("numbers", batch=Batch(size=10, wait=wait))
    async def handle(numbers: list[int]) -> None:
        seen.append(numbers)

    async with TestApp(app) as t:
        await t.advance(before)
        await t.publish("numbers", 1)
        await t.advance(wait)
        assert seen == [[1]]


async def test_retries_of_a_timeout_between_two_floats_pass_with_the_time():
    app, attempts = Carteiro("shop"), list[float]()

    @app.subscriber("slow", timeout=0.1, retry=Retry(attempts=3, backoff=constant(1.7)))
    async def slow(order: int) -> None:
        attempts.append(app.clock.time())
        await app.clock.sleep(FOREVER)

    async with TestApp(app, patience=0) as t:
        await t.advance(0.1)
        await t.publish("slow", 1)
        await t.advance(30)
        assert len(attempts) == 3
        assert len(t.dead("slow")) == 1


# -- its end -----------------------------------------------------------------------------------------------------------


async def test_it_ends_while_a_handler_waits():
    app, events = waiting_for_ever()

    async with TestApp(app, patience=0.01) as t:
        await t.publish("slow", 1)
        await t.advance(1)

    assert events == ["begun", "interrupted"]
    assert app.worker is None


async def test_an_assertion_in_its_body_surfaces_while_a_handler_waits():
    app, events = waiting_for_ever()

    async def test() -> None:
        async with TestApp(app, patience=0.01) as t:
            await t.publish("slow", 1)
            await t.idle()

    with pytest.raises(AssertionError, match="not idle: still being handled are"):
        await test()
    assert events == ["begun", "interrupted"]


async def test_a_handler_that_ends_by_itself_is_not_interrupted_by_the_end():
    app, begun, events = Carteiro("shop"), asyncio.Event(), list[str]()

    @app.subscriber("slow")
    async def slow(order: int) -> None:
        begun.set()
        await asyncio.to_thread(events.append, "thread")
        events.append("ended")

    async with TestApp(app) as t:
        await t.publish("slow", 1)
        await begun.wait()

    assert events == ["thread", "ended"]


async def test_a_lifespan_that_waits_for_time_to_pass_does_not_keep_it_from_ending():
    @asynccontextmanager
    async def resources(app: Carteiro) -> AsyncIterator[None]:
        yield
        await app.clock.sleep(60)

    app = Carteiro("shop", lifespan=resources)

    @app.subscriber("orders")
    async def handle(order: int) -> None: ...

    async with TestApp(app, patience=0.01):
        pass

    assert app.worker is None


async def test_it_ends_where_a_worker_was_to_die():
    app, begun = Carteiro("shop"), asyncio.Event()

    @app.subscriber("orders")
    async def handle(order: int) -> None:
        begun.set()

    async with TestApp(app) as t:
        t.crash_at(handle, "before_ack")
        await t.publish("orders", 1)
        await begun.wait()

    assert t.crashes == 0
    assert app.worker is None


async def test_it_ends_where_a_worker_has_just_died(monkeypatch: pytest.MonkeyPatch):
    app, killed, kill = Carteiro("shop"), asyncio.Event(), Worker.kill

    def killing(worker: Worker) -> None:
        kill(worker)
        killed.set()

    monkeypatch.setattr(Worker, "kill", killing)

    @app.subscriber("orders")
    async def handle(order: int) -> None: ...

    async with TestApp(app) as t:
        t.crash_at(handle, "claimed")
        await t.publish("orders", 1)
        await killed.wait()

    assert app.worker is None
    with pytest.raises(NotConnected):
        _ = app.connection


# -- a worker that has died --------------------------------------------------------------------------------------------


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Once it is set, the worker dies of a RuntimeError."""
    breaks = asyncio.Event()

    async def until_it_breaks(worker: Worker) -> None:
        await breaks.wait()
        raise RuntimeError("the intake broke")

    monkeypatch.setattr(Worker, "run_until_stopped", until_it_breaks)
    return breaks


async def test_the_end_raises_what_the_worker_died_of(broken: asyncio.Event):
    app, _ = waiting_for_ever()

    async def test() -> None:
        async with TestApp(app) as t:
            broken.set()
            with suppress(RuntimeError):
                await t.idle()

    with pytest.raises(RuntimeError, match="the intake broke"):
        await test()
    with pytest.raises(NotConnected):
        _ = app.connection


@pytest.mark.parametrize(
    "wait",
    [TestApp.idle, lambda t: t.advance(60), lambda t: t.request("slow", 1)],
    ids=["idle", "advance", "request"],
)
async def test_what_waits_for_a_worker_raises_what_it_died_of(
    broken: asyncio.Event, wait: Callable[[TestApp], Awaitable[Any]]
):
    app, _ = waiting_for_ever()

    async def test() -> None:
        async with TestApp(app) as t:
            broken.set()
            with pytest.raises(RuntimeError, match="the intake broke"):
                await wait(t)
            raise AssertionError("it waited and raised")

    with pytest.raises(AssertionError, match="it waited and raised"):
        await test()


async def test_a_test_that_failed_by_itself_notes_what_the_worker_died_of(broken: asyncio.Event):
    app, _ = waiting_for_ever()

    async def test() -> None:
        async with TestApp(app) as t:
            broken.set()
            with suppress(RuntimeError):
                await t.idle()
            raise AssertionError("nothing came")

    with pytest.raises(AssertionError, match="nothing came") as failed:
        await test()
    assert failed.value.__notes__ == ["the worker had died: RuntimeError('the intake broke')"]


async def test_an_app_that_cannot_start_is_left_as_it_was():
    @asynccontextmanager
    async def resources(app: Carteiro) -> AsyncIterator[None]:
        raise ConnectionError("no database")
        yield

    app = Carteiro("shop", "sqlite:///shop.db", lifespan=resources)

    @app.subscriber("orders")
    async def handle(order: int) -> None: ...

    with pytest.raises(ConnectionError, match="no database"):
        async with TestApp(app):
            pass

    assert app.url == "sqlite:///shop.db"
    with pytest.raises(NotConnected):
        _ = app.connection


async def test_an_app_that_was_stopped_is_idle():
    app, _ = waiting_for_ever()

    async with TestApp(app) as t:
        app.stop()
        await t.idle()
        assert app.worker is None


# -- what it shows -----------------------------------------------------------------------------------------------------


async def test_dead_letters_are_found_by_the_topic_that_was_published_to():
    app = Carteiro("shop")

    @app.subscriber("orders.*")
    async def handle(order: int) -> None:
        raise Reject(f"no {order}")

    async with TestApp(app) as t:
        await t.publish("orders.placed", 1)
        await t.publish("orders.seen", 2)
        await t.idle()
        assert [letter.reason for letter in t.dead("orders.placed")] == ["Reject: no 1"]
        assert [letter.reason for letter in t.dead("orders.*")] == ["Reject: no 1", "Reject: no 2"]
        assert t.dead("orders.paid") == []


async def test_what_was_published_is_shown_as_types_that_only_the_test_knows():
    class Order(BaseModel):
        id: int

    class Released(BaseModel):
        order_id: int

    app = Carteiro("shop")

    @app.subscriber("orders.placed")
    @app.publisher("orders.paid")
    async def pay(order: Order, release: Annotated[Emit[Released], Topic("stock.released")]) -> Order:
        release(Released(order_id=order.id))
        return order

    async with TestApp(app) as t:
        await t.publish("orders.placed", Order(id=1))
        await t.idle()
        assert t.published("orders.placed") == [Order(id=1)]
        assert t.published("orders.paid") == [Order(id=1)]
        assert t.published("stock.released") == [Released(order_id=1)]


async def test_what_was_published_as_a_type_that_only_a_type_checker_knows_is_shown_as_json():
    app = Carteiro("shop")

    @app.subscriber("orders.placed")
    @app.publisher("receipts")
    async def pay(order: int) -> Receipt:
        return {"order": order}

    async with TestApp(app) as t:
        await t.publish("orders.placed", 1)
        await t.idle()
        assert t.published("receipts") == [{"order": 1}]
