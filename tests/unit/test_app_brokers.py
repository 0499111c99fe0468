"""Several brokers in one app: where what is named goes, and a life that they share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from carteiro import (
    BrokerUnavailable,
    Carteiro,
    ConfigurationError,
    Emit,
    Idempotency,
    NotConnected,
    Outgoing,
    Reject,
    Router,
    Topic,
    UnsupportedFeature,
)
from carteiro.engine.worker import Worker
from carteiro.message import Retention
from carteiro.ports.broker import Broker, Check, Inspector
from carteiro.ports.clock import SYSTEM_CLOCK
from carteiro.ports.features import Capability, Support
from carteiro.ports.registry import open_backend
from carteiro.testing import TestApp


@pytest.fixture
def app() -> Carteiro:
    return Carteiro("shop", brokers={"default": "memory://", "events": "memory://"})


async def take(order: int) -> None: ...


class Storeless:
    """A broker in memory that keeps no state."""

    def __init__(self) -> None:
        inner: Any = open_backend("memory://", clock=SYSTEM_CLOCK)
        inner.broker.store = None
        self.broker: Broker = inner.broker
        self.store = None

    async def doctor(self) -> Sequence[Check]:
        return []


# -- what can be meant ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"broker": "memory://", "brokers": {"default": "memory://"}}, "has broker= and brokers="),
        ({"brokers": {"events": "memory://"}}, 'without "default"'),
        ({"brokers": {"default": None}}, "'default' needs a URL"),
        ({"brokers": {"default": "memory://", "my events": "memory://"}}, "'my events' needs a URL, and its name no"),
    ],
)
def test_brokers_that_cannot_be_meant_are_refused_at_once(options: dict[str, Any], says: str):
    with pytest.raises(ConfigurationError, match=says):
        Carteiro("shop", **options)


def subscribed(app: Carteiro) -> None:
    @app.subscriber("orders", broker="evnts")
    async def handle(order: int) -> None: ...


def published(app: Carteiro) -> None:
    @app.subscriber("orders")
    @app.publisher("done", broker="evnts")
    async def handle(order: int) -> None: ...


def emitted(app: Carteiro) -> None:
    @app.subscriber("orders")
    async def handle(order: int, done: Annotated[Emit[int], Topic("done", broker="evnts")]) -> None: ...


def said_of_a_topic(app: Carteiro) -> None:
    app.subscriber("orders")(take)
    app.topic("done", broker="evnts")


@pytest.mark.parametrize("declare", [subscribed, published, emitted, said_of_a_topic])
async def test_an_unknown_broker_is_named_with_those_that_there_are(app: Carteiro, declare: Callable[[Carteiro], None]):
    declare(app)
    with pytest.raises(
        ConfigurationError, match=r"the broker `evnts`, which the app does not have.*`default`, `events`"
    ):
        await app.run()


async def test_publishing_to_an_unknown_broker_is_refused(app: Carteiro):
    async with app:
        with pytest.raises(ConfigurationError, match=r"`evnts`.* it has `default`, `events`"):
            await app.publish("orders", 1, broker="evnts")


def test_a_topic_of_which_nothing_is_said_is_an_error(app: Carteiro):
    with pytest.raises(ConfigurationError, match=r"topic\(`orders`\) says nothing"):
        app.topic("orders")


def test_a_topic_lives_on_one_broker(app: Carteiro):
    app.topic("orders", broker="events")
    app.topic("orders", broker="events", retain="7d")
    with pytest.raises(ConfigurationError, match="`orders` cannot live on the broker `default` and on `events`"):
        app.topic("orders", broker="default")


async def test_what_a_subscriber_needs_its_own_broker_must_have():
    poor: Any = open_backend("memory://", clock=SYSTEM_CLOCK)
    features = poor.broker.features
    lacking = {**features.support, Capability.ORDERED: Support("unsupported", "it is poor")}
    poor.broker.features = msgspec.structs.replace(features, support=lacking)
    app = Carteiro("shop", brokers={"default": "memory://", "poor": poor})
    app.subscriber("orders", ordered=True)(take)
    async with app:
        pass
    app.subscriber("bills", ordered=True, broker="poor")(take)
    with pytest.raises(UnsupportedFeature, match=r"`bills` needs order by key.*: it is poor"):
        async with app:
            pass


# -- where it goes -------------------------------------------------------------------------------------------------


def echoing(app: Carteiro) -> None:
    """On both brokers, `ask` is answered with the name of the broker."""

    @app.subscriber("ask")
    async def here(name: str) -> str:
        return f"default hears {name}"

    @app.subscriber("ask", broker="events")
    async def there(name: str) -> str:
        return f"events hears {name}"


async def test_one_name_on_two_brokers_is_two_topics(app: Carteiro):
    echoing(app)
    async with TestApp(app) as t:
        assert await t.request("ask", "Ana") == "default hears Ana"
        assert await t.request("ask", "Ana", broker="events") == "events hears Ana"


async def test_what_names_a_topic_that_lives_elsewhere_goes_there(app: Carteiro):
    app.topic("ask", broker="events")
    app.topic("answers", broker="events")

    @app.subscriber("ask")
    @app.publisher("answers")
    async def answer(name: str, log: Annotated[Emit[str], Topic("log")]) -> str:
        log(name)
        return f"hello, {name}"

    async with TestApp(app) as t:
        assert await t.request("ask", "Ana") == "hello, Ana"
        await t.publish("ask", "Bia")
        await t.publish_many("ask", ["Caio"])
        await t.idle()
        assert t.published("answers") == ["hello, Ana", "hello, Bia", "hello, Caio"]
        assert {one.broker for topic in ("ask", "answers") for one in t.messages(topic)} == {"events"}
        assert {one.broker for one in t.messages("log")} == {"default"}
        assert ("ask", "shop") in t.groups("events")
        assert t.groups() == {}


async def test_broker_is_stronger_than_where_the_topic_lives(app: Carteiro):
    app.topic("ask", broker="events")
    app.subscriber("ask", broker="default")(lambda name: None)
    async with TestApp(app) as t:
        await t.publish("ask", "Ana", broker="default")
        await t.publish("ask", "Ana")
        assert [one.broker for one in t.messages("ask")] == ["default", "events"]


async def test_the_dead_letters_of_a_topic_are_where_it_lives(app: Carteiro):
    app.topic("orders", broker="events")
    told: list[int] = []

    @app.subscriber("orders")
    async def refuse(order: int) -> None:
        raise Reject("no")

    @app.subscriber("dlq_orders")
    async def mourn(order: int) -> None:
        told.append(order)

    async with TestApp(app) as t:
        await t.publish("orders", 1)
        await t.idle()
        assert [letter.queue for letter in t.dead("orders")] == ["dlq_orders"]
        assert told == [1]


async def test_a_router_takes_its_brokers_along_with_its_prefix(app: Carteiro):
    router = Router(prefix="orders.")
    router.topic("placed", broker="events", retain="1h")

    @router.subscriber("placed")
    @router.publisher("done", broker="events")
    async def handle(order: int) -> int:
        return order

    inner = Router(prefix="shop.")
    inner.include(router)
    app.include(inner)
    async with TestApp(app) as t:
        await t.publish("shop.orders.placed", 1)
        await t.idle()
        assert [(one.topic, one.broker) for one in t.messages()] == [
            ("shop.orders.placed", "events"),
            ("shop.orders.done", "events"),
        ]


async def test_a_topic_is_kept_on_the_broker_on_which_it_lives(monkeypatch: pytest.MonkeyPatch):
    kept: dict[str, list[str]] = {}

    def telling(name: str) -> Any:
        backend: Any = open_backend("memory://", clock=SYSTEM_CLOCK)
        declare = backend.broker.declare

        async def tell(subscriptions: Any, retentions: list[Retention]) -> None:
            kept[name] = [retention.topic for retention in retentions]
            await declare(subscriptions, retentions)

        monkeypatch.setattr(backend.broker, "declare", tell)
        return backend

    app = Carteiro("shop", brokers={"default": telling("default"), "events": telling("events")})
    app.topic("a", retain="1h")
    app.topic("b", retain="1h", broker="events")
    app.subscriber("c", retain="1h", broker="events")(take)
    app.topic("d", broker="events")
    app.subscriber("d", retain="1h")(take)
    async with app:
        assert kept == {"default": ["a"], "events": ["b", "c", "d"]}


def test_publishing_without_a_loop_goes_to_the_same_brokers(tmp_path: Path):
    urls = {name: f"sqlite:///{tmp_path}/{name}.db" for name in ("default", "events")}
    app = Carteiro("shop", brokers=urls)
    app.topic("orders", broker="events")
    app.subscriber("orders")(take)
    app.publish_sync("orders", 1, mandatory=True)
    app.publish_many_sync("orders", [2, 3], mandatory=True)
    assert app.publish_many_sync("orders", []) == []

    async def waiting() -> int:
        async with app:
            broker = app.connections["events"].broker
            assert isinstance(broker, Inspector)
            (status,) = await broker.groups()
            return status.waiting

    assert asyncio.run(waiting()) == 3


async def test_publish_middleware_is_told_where_a_message_goes_and_cannot_change_that(app: Carteiro):
    seen: list[tuple[str, str | None]] = []

    @app.publish_middleware
    async def tell(message: Outgoing, call_next: Callable[[Outgoing], Awaitable[None]]) -> None:
        seen.append((message.topic, message.broker))
        await call_next(msgspec.structs.replace(message, broker=None))

    @app.subscriber("orders")
    @app.publisher("done", broker="events")
    async def handle(order: int) -> int:
        return order

    async with TestApp(app) as t:
        await t.publish("orders", 1)
        await t.idle()
        assert seen == [("orders", "default"), ("done", "events")]
        assert t.messages("done")[0].broker == "events"


# -- a life that they share ----------------------------------------------------------------------------------------


async def test_one_that_cannot_be_opened_is_named_and_closes_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fine: Any = open_backend("memory://", clock=SYSTEM_CLOCK)
    closed: list[str] = []

    async def close() -> None:
        closed.append("fine")

    monkeypatch.setattr(fine.broker, "close", close)
    app = Carteiro("shop", brokers={"default": fine, "events": f"sqlite:///{tmp_path}/missing/events.db"})
    with pytest.raises(BrokerUnavailable, match=r"broker `events`: .*missing"):
        async with app:
            pass
    assert closed == ["fine"]
    with pytest.raises(NotConnected):
        _ = app.connections
    (tmp_path / "missing").mkdir()
    async with app:
        assert list(app.connections) == ["default", "events"]
        assert app.connection is app.connections["default"]


async def test_a_worker_runs_for_each_broker_that_has_subscribers(app: Carteiro):
    app.subscriber("orders", broker="events")(take)
    running = asyncio.create_task(app.run())
    await app.ready()
    assert app.worker is None
    assert list(app.workers) == ["events"]
    app.stop()
    await running
    assert app.workers == {}


async def test_only_leaves_the_other_brokers_alone(app: Carteiro):
    echoing(app)
    app.subscriber("bills")(take)
    running = asyncio.create_task(app.run(only=["bills"]))
    await app.ready()
    assert list(app.workers) == ["default"]
    app.stop()
    await running


async def test_the_death_of_one_worker_ends_them_all(app: Carteiro, monkeypatch: pytest.MonkeyPatch):
    echoing(app)
    until_stopped = Worker.run_until_stopped

    async def die(worker: Worker) -> None:
        if worker is app.workers["events"]:
            raise RuntimeError("the intake broke")
        await until_stopped(worker)

    monkeypatch.setattr(Worker, "run_until_stopped", die)
    stopped: list[Worker] = []
    stop = Worker.stop

    async def told(worker: Worker, grace: float) -> None:
        stopped.append(worker)
        await stop(worker, grace)

    monkeypatch.setattr(Worker, "stop", told)
    with pytest.raises(RuntimeError, match="the intake broke"):
        await app.run()
    assert len(stopped) == 2
    assert app.workers == {}


async def test_all_of_them_stop_under_one_grace():
    app = Carteiro("shop", brokers={"default": "memory://", "events": "memory://"}, grace=30)
    begun = asyncio.Semaphore(0)

    @app.subscriber("slow")
    @app.subscriber("slow", broker="events")
    async def slow(number: int) -> None:
        begun.release()
        await asyncio.Event().wait()

    async with TestApp(app) as t:
        await t.publish("slow", 1)
        await t.publish("slow", 1, broker="events")
        for _ in range(2):
            await begun.acquire()
        before = t.now
    assert (t.now - before).total_seconds() == 30


async def test_a_crash_is_the_death_of_every_worker_of_the_process(app: Carteiro):
    seen: list[str] = []
    app.topic("there", broker="events")

    @app.subscriber("here")
    async def here(number: int) -> None:
        seen.append("here")

    @app.subscriber("there")
    async def there(number: int) -> None:
        seen.append("there")

    async with TestApp(app) as t:
        t.crash_at(there, "before_ack")
        await t.publish("there", 1)
        await t.idle()
        assert t.crashes == 1
        await t.publish("here", 1)
        await t.advance(60)
        assert seen == ["there", "here", "there"]


# -- the store -----------------------------------------------------------------------------------------------------


async def test_each_broker_keeps_state_in_its_own_store_if_it_has_one(app: Carteiro):
    async with app:
        for connection in app.connections.values():
            assert connection.store is connection.broker.store


async def test_a_broker_without_a_store_uses_that_of_another():
    app = Carteiro("shop", brokers={"default": Storeless(), "a": Storeless(), "b": "memory://", "c": "memory://"})
    async with app:
        stores = {name: connection.store for name, connection in app.connections.items()}
        assert stores["default"] is stores["a"] is stores["b"] is app.connections["b"].broker.store
        assert stores["c"] is app.connections["c"].broker.store


async def test_where_no_broker_has_a_store_the_embedded_one_is_made_if_someone_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    app = Carteiro("shop", Storeless())
    charged: list[int] = []
    app.subscriber("orders")(take)
    async with app:
        assert app.connection.store is None
    assert os.listdir(tmp_path) == []

    handled = asyncio.Semaphore(0)

    @app.middleware
    async def tell(message: object, call_next: Callable[[Any], Awaitable[Any]]) -> None:
        await call_next(message)
        handled.release()

    @app.subscriber("charges", idempotency=Idempotency(key="order_id"), rate_limit="1000/s")
    async def charge(order: dict[str, int]) -> None:
        charged.append(order["order_id"])

    running = asyncio.create_task(app.run())
    await app.ready()
    await app.publish("charges", {"order_id": 7})
    await handled.acquire()
    await app.publish("charges", {"order_id": 7})
    await app.publish("charges", {"order_id": 8})
    await handled.acquire()
    app.stop()
    await running
    assert charged == [7, 8]
    assert (tmp_path / "carteiro.db").exists()


async def test_store_is_in_place_of_every_brokers_own(tmp_path: Path):
    brokers = {"default": "memory://", "events": "memory://"}
    app = Carteiro("shop", brokers=brokers, store=f"sqlite:///{tmp_path}/store.db")
    async with app:
        assert app.connections["events"].store is app.connection.store is not app.connection.broker.store
