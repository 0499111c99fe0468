"""Publishing what cannot be published, in company, and on behalf of a message."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest

from carteiro import Carteiro, Emit, Outgoing, RequestFailed, Topic, Unencodable
from carteiro.ports.broker import Broker
from carteiro.testing import TestApp


def shop() -> Carteiro:
    app = Carteiro("shop", "memory://")

    @app.subscriber("orders")
    async def handle(order: int) -> None: ...

    return app


# -- what is no text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"headers": {"retries": 3}}, "header 'retries' of a message to `orders` is of type int: headers are text"),
        ({"headers": {"tenant": None}}, "header 'tenant' of a message to `orders` is of type NoneType"),
        ({"headers": {1: "br"}}, "header 1 of a message to `orders`"),
        ({"type": 1}, "header 'type' of a message to `orders` is of type int"),
        ({"key": 5}, "key=5 of a message to `orders` is of type int: it must be text"),
        ({"key": "\ud800"}, "holds half of a character"),
        ({"key": b"k"}, "key=b'k' of a message to `orders` is of type bytes"),
        ({"id": 7}, "id=7 of a message to `orders` is of type int"),
        ({"correlation_id": 7}, "correlation_id=7 of a message to `orders` is of type int"),
    ],
)
async def test_what_is_no_text_cannot_be_published(options: dict[str, Any], words: str):
    app = shop()
    async with app:
        with pytest.raises(Unencodable, match=words):
            await app.publish("orders", 1, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"headers": {"retries": 3}}, "header 'retries' of a message to `orders` is of type int"),
        ({"key": lambda value: value}, "key=1 of a message to `orders` is of type int"),
        ({"id": lambda value: value}, "id=1 of a message to `orders` is of type int"),
    ],
)
async def test_what_is_no_text_cannot_be_published_among_many(options: dict[str, Any], words: str):
    async with TestApp(shop()) as t:
        with pytest.raises(Unencodable, match=words):
            await t.publish_many("orders", [1, 2], **options)
        assert t.messages("orders") == []


@pytest.fixture(params=["memory", "sqlite"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/shop.db"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"headers": {"n": 1}}, "Unencodable: header 'n' of a message to `invoices` is of type int"),
        ({"key": 1}, "Unencodable: key=1 of a message to `invoices` is of type int"),
    ],
)
async def test_a_handler_that_emits_what_is_no_text_fails_alone(broker: str, options: dict[str, Any], words: str):
    app = Carteiro("shop", broker)

    @app.subscriber("orders")
    async def invoice(order: int, emit: Annotated[Emit[int], Topic("invoices")]) -> str:
        emit(order, **(options if order == 13 else {}))
        return "invoiced"

    async with app.lifespan():
        asked = [app.request("orders", order) for order in (12, 13, 14)]
        before, bad, after = await asyncio.gather(*asked, return_exceptions=True)

    assert (before, after) == ("invoiced", "invoiced")
    assert isinstance(bad, RequestFailed)
    assert words in str(bad)


async def test_a_publisher_whose_key_is_no_text_fails_alone():
    app = Carteiro("shop")

    @app.subscriber("orders")
    @app.publisher("invoices", key=lambda order: "twelve" if order == 12 else order)
    async def invoice(order: int) -> int:
        return order

    async with TestApp(app) as t:
        await t.publish_many("orders", [12, 13])
        await t.idle()
        assert t.published("invoices") == [12]
        (letter,) = t.dead("orders")
        assert letter.reason == "Unencodable: key=13 of a message to `invoices` is of type int: it must be text"


# -- in company --------------------------------------------------------------------------------------------------------


class Recording:
    """Stands before the `publish` of a broker: what it was called with. A body of 13 it refuses."""

    def __init__(self, broker: Broker) -> None:
        self.calls: list[list[bytes]] = []
        self._publish = broker.publish

    async def __call__(self, messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        self.calls.append([message.body for message in messages])
        if b"13" in self.calls[-1]:
            raise ValueError("13 is bad luck")
        return await self._publish(messages)


async def test_a_message_that_the_broker_refuses_does_not_fail_those_published_at_the_same_time(
    monkeypatch: pytest.MonkeyPatch,
):
    app = shop()
    async with app:
        recording = Recording(app.connection.broker)
        monkeypatch.setattr(app.connection.broker, "publish", recording)
        results = await asyncio.gather(
            *(app.publish("orders", order, id=str(order)) for order in (12, 13, 14)), return_exceptions=True
        )

    assert [str(result) for result in results] == ["12", "13 is bad luck", "14"]
    assert recording.calls == [[b"12", b"13", b"14"], [b"12"], [b"13"], [b"14"]]


async def test_many_that_pass_through_middleware_still_go_in_one_batch(monkeypatch: pytest.MonkeyPatch):
    app = shop()
    passed: list[bytes] = []

    @app.publish_middleware
    async def watch(outgoing: Outgoing, call_next: Callable[[Outgoing], Awaitable[None]]) -> None:
        passed.append(outgoing.body)
        await call_next(outgoing)

    async with app:
        recording = Recording(app.connection.broker)
        monkeypatch.setattr(app.connection.broker, "publish", recording)
        await app.publish_many("orders", range(100, 200))

    bodies = [b"%d" % order for order in range(100, 200)]
    assert passed == bodies
    assert recording.calls == [bodies]


# -- on behalf of a message --------------------------------------------------------------------------------------------


async def test_a_task_that_a_handler_leaves_behind_publishes_with_the_correlation_id_of_its_message():
    app = Carteiro("shop")
    background: list[asyncio.Task[str]] = []
    second_has_come = asyncio.Event()

    async def remind(order: int) -> str:
        await second_has_come.wait()
        return await app.publish("reminders", order)

    @app.subscriber("orders", concurrency=1)
    async def handle(order: int) -> None:
        if order == 1:
            background.append(asyncio.create_task(remind(order)))
        else:
            second_has_come.set()
            await asyncio.wait(background)  # the first one's task runs while this is being handled

    async with TestApp(app) as t:
        await t.publish("orders", 1, correlation_id="first")
        await t.publish("orders", 2, correlation_id="second")
        await t.idle()
        assert [message.correlation_id for message in t.messages("reminders")] == ["first"]
