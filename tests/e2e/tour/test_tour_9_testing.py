"""Part 9: tests without servers and without waiting."""

import importlib
import sys
from types import ModuleType
from typing import Annotated, Any

import pytest

from carteiro import Carteiro, ConfigurationError, Emit, Message, Reject, Retry, Topic, exponential
from carteiro.testing import TestApp
from carteiro.testing.clock import START


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.delitem(sys.modules, "docs.tour.test_shop", raising=False)
    return importlib.import_module("docs.tour.test_shop")


async def test_the_tours_unit_test_passes(shop: ModuleType):
    await shop.test_unit()


async def test_the_tours_flow_passes(shop: ModuleType):
    await shop.test_flow()


async def test_two_weeks_of_retries_pass_in_their_order_each_at_its_time():
    app = Carteiro("shop")
    attempts: list[float] = []

    @app.subscriber("checkout", retry=Retry(attempts=10, backoff=exponential(3600, jitter=None)))
    async def checkout(order: int) -> None:
        attempts.append((t.now - START).total_seconds())
        raise ConnectionError("the bank is away")

    async with TestApp(app) as t:
        await t.publish("checkout", 1)
        await t.idle()
        assert attempts == [0]
        await t.advance(days=14)
        assert attempts == pytest.approx([0, *(3600 * (2**n - 1) for n in range(1, 9))])
        assert t.dead("checkout") == []
        await t.advance(days=30)
        assert len(attempts) == 10
        (letter,) = t.dead("checkout")
        assert letter.reason == "ConnectionError: the bank is away"
        assert [failure.at - letter.message.published for failure in letter.history] == pytest.approx(attempts)


async def test_delays_fire_in_their_order_whatever_the_order_of_publishing():
    app = Carteiro("shop")
    seen: list[tuple[float, int]] = []

    @app.subscriber("reminders")
    async def remind(number: int) -> None:
        seen.append(((t.now - START).total_seconds(), number))

    async with TestApp(app) as t:
        for number, hours in enumerate((5, 1, 3)):
            await t.publish("reminders", number, delay=hours * 3600)
        await t.advance(hours=24)

    assert [number for _, number in seen] == [1, 2, 0]
    assert [at for at, _ in seen] == pytest.approx([3600, 3 * 3600, 5 * 3600])


@pytest.mark.parametrize(
    ("point", "handled", "released"),
    [
        pytest.param("claimed", [2], 1, id="it had only fetched"),
        pytest.param("before_ack", [1, 2], 1, id="it had handled and not settled"),
        pytest.param("after_ack", [1], 1, id="it had settled"),
    ],
)
async def test_what_a_worker_that_dies_leaves(point: Any, handled: list[int], released: int):
    app = Carteiro("shop")
    attempts: list[int] = []

    @app.subscriber("checkout")
    async def checkout(message: Message, emit: Annotated[Emit[int], Topic("stock.released")]) -> None:
        attempts.append(message.attempt)
        emit(1)

    async with TestApp(app) as t:
        t.crash_at(checkout, point)
        await t.publish("checkout", 1)
        await t.advance(minutes=5)
        assert t.crashes == 1
        assert attempts == handled
        assert t.published("stock.released") == [1] * released
        assert t.dead() == []


async def test_a_message_that_kills_every_worker_is_dead_with_that_reason():
    app = Carteiro("shop")

    @app.subscriber("checkout", retry=Retry(attempts=3))
    async def checkout(order: int) -> None: ...

    async with TestApp(app) as t:
        t.crash_at(checkout, "before_ack", times=3)
        await t.publish("checkout", 1)
        await t.advance(minutes=10)
        assert t.crashes == 3
        (letter,) = t.dead("checkout")
        assert letter.reason.startswith("WorkerLost: the worker died")


async def test_a_crash_is_asked_for_a_subscriber():
    app = Carteiro("shop")

    async def nobody() -> None: ...

    async with TestApp(app) as t:
        with pytest.raises(ConfigurationError, match=r"nobody.* is no subscriber and no task of app `shop`"):
            t.crash_at(nobody, "claimed")


async def test_it_shows_what_was_published_and_what_is_dead_by_topic_or_pattern():
    app = Carteiro("shop")

    @app.subscriber("orders.placed")
    async def placed(order: int) -> None:
        raise Reject(f"no {order}")

    async with TestApp(app) as t:
        await t.publish("orders.placed", 1)
        await t.publish("orders.seen", 2)
        await t.idle()
        assert t.published("orders.*") == [1, 2]
        assert [letter.reason for letter in t.dead("orders.#")] == ["Reject: no 1"]
        assert t.dead("checkout") == []


async def test_a_handler_that_waits_for_time_to_pass_does_not_keep_advance_waiting():
    app = Carteiro("shop")

    @app.subscriber("slow", timeout="1h", retry=Retry(attempts=1))
    async def slow(order: int) -> None:
        await t.clock.sleep(30)

    async with TestApp(app, patience=0.01) as t:
        await t.publish("slow", 1)
        await t.advance(seconds=29)
        assert t.groups()["slow", "shop"].in_flight == 1
        await t.advance(seconds=2)
        assert t.groups()["slow", "shop"].in_flight == 0


async def test_the_apps_own_broker_is_not_touched():
    app = Carteiro("shop", "sqlite:////nowhere/at/all.db")

    @app.subscriber("greetings")
    async def greet(name: str) -> str:
        return f"hello, {name}"

    async with TestApp(app) as t:
        assert await t.request("greetings", "Ana") == "hello, Ana"
    assert app.url == "sqlite:////nowhere/at/all.db"
