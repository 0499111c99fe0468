"""What a handler emits to another broker than its own: safe there before its message is settled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest

from carteiro import BrokerUnavailable, Carteiro, Emit, Idempotency, Retry, Topic, constant
from carteiro.message import Outcome, Outgoing, Write
from carteiro.ports.broker import GroupStatus, Inspector
from carteiro.ports.registry import open_backend
from carteiro.testing import TestApp, VirtualClock


class Away:
    """Stands before a broker's `publish`, which raises `error` while there is one."""

    def __init__(self, broker: Any) -> None:
        self._publish = broker.publish
        self.error: Exception | None = None
        self.refuses: Callable[[Outgoing], bool] = lambda message: False
        self.tries = 0
        self.published: list[Outgoing] = []
        broker.publish = self.publish

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        self.tries += 1
        if self.error is not None:
            raise self.error
        if any(map(self.refuses, messages)):
            raise ValueError("too large for this broker")
        unrouted: Sequence[Outgoing] = await self._publish(messages)
        self.published += messages
        return unrouted


class Scene:
    """An app on two brokers in memory, under a clock of its own."""

    def __init__(self, **options: Any) -> None:
        self.clock = VirtualClock()
        self.backends: dict[str, Any] = {
            name: open_backend("memory://", clock=self.clock) for name in ("default", "events")
        }
        self.events = Away(self.backends["events"].broker)
        self.app = Carteiro("shop", brokers=self.backends, clock=self.clock, grace=1, **options)
        self.app.topic("reserved", broker="events")
        self.running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.running = asyncio.create_task(self.app.run())
        ready = asyncio.create_task(self.app.ready())
        await asyncio.wait((self.running, ready), return_when=asyncio.FIRST_COMPLETED)
        assert ready.done(), self.running.result()

    async def passing(self, until: Callable[[], Any]) -> None:
        """Let time pass until this is so."""
        async with asyncio.timeout(30):
            while not until():
                self.clock.advance_to(self.clock.time() + 0.1)
                for _ in range(5):
                    await asyncio.sleep(0)

    async def stop(self) -> None:
        assert self.running is not None
        self.app.stop()
        await self.passing(self.running.done)
        await self.running

    async def group(self, topic: str) -> GroupStatus:
        broker = self.backends["default"].broker
        assert isinstance(broker, Inspector)
        return next(one for one in await broker.groups() if one.topic == topic)

    async def done(self, topic: str) -> bool:
        one = await self.group(topic)
        return not any((one.waiting, one.delayed, one.retrying, one.in_flight, one.dead))


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    yield scene
    if scene.running is not None and not scene.running.done():
        await scene.stop()


def reserving(app: Carteiro) -> list[int]:
    """A subscriber of `orders` that emits each to `reserved`, on the other broker, and to `noted`, on its own."""
    handled: list[int] = []

    @app.subscriber("orders", retry=Retry(attempts=2, backoff=constant(1)))
    @app.publisher("reserved")
    async def reserve(order: int, note: Annotated[Emit[int], Topic("noted")]) -> int:
        handled.append(order)
        note(order)
        return order

    @app.subscriber("noted")
    async def noted(order: int) -> None: ...

    return handled


AWAY = BrokerUnavailable("the connection is lost")


async def test_it_waits_for_a_broker_that_is_away_and_holds_up_no_others(scene: Scene):
    handled, plain = reserving(scene.app), list[int]()

    @scene.app.subscriber("plain")
    async def handle(number: int) -> None:
        plain.append(number)

    await scene.start()
    scene.events.error = AWAY
    await scene.app.publish_many("orders", [1, 2, 3])
    await scene.passing(lambda: scene.events.tries > 2)
    assert handled == [1, 2, 3]
    assert (await scene.group("orders")).in_flight == 3
    assert await scene.done("noted")

    await scene.app.publish("plain", 7)
    await scene.passing(lambda: plain)
    await scene.passing(lambda: not scene.app.workers["default"].lanes[_of(scene, "plain")].held)
    assert await scene.done("plain")

    scene.events.error = None
    await scene.passing(lambda: len(scene.events.published) == 3)
    await scene.stop()
    assert await scene.done("orders")
    assert handled == [1, 2, 3]
    assert [message.body for message in scene.events.published] == [b"1", b"2", b"3"]


def _of(scene: Scene, topic: str) -> Any:
    return next(one for one in scene.app.declared() if one.topic == topic)


async def test_with_an_outbox_it_is_kept_there_and_waits_for_nothing(tmp_path: Path):
    scene = Scene(outbox=tmp_path / "outbox.db")
    reserving(scene.app)
    await scene.start()
    scene.events.error = AWAY
    await scene.app.publish("orders", 1)
    await scene.passing(lambda: scene.app.workers["default"].handled == 2)
    assert await scene.done("orders")
    assert scene.events.published == []

    scene.events.error = None
    await scene.passing(lambda: [one.body for one in scene.events.published if one.topic == "reserved"] == [b"1"])
    await scene.stop()


async def test_a_lease_is_renewed_while_it_waits(scene: Scene):
    handled = reserving(scene.app)
    await scene.start()
    scene.events.error = AWAY
    await scene.app.publish("orders", 1)
    began = scene.clock.time()
    await scene.passing(lambda: scene.clock.time() > began + 100)
    assert handled == [1]


async def test_a_stop_meanwhile_hands_the_message_back_as_if_it_had_not_been_tried(
    scene: Scene, caplog: pytest.LogCaptureFixture
):
    reserving(scene.app)
    await scene.start()
    scene.events.error = AWAY
    await scene.app.publish("orders", 1)
    await scene.passing(lambda: scene.events.tries > 1)

    await scene.stop()

    assert "1 messages are handed back, handled but not settled, for the broker `events`" in caplog.text
    broker = scene.backends["default"].broker
    (message,) = await broker.peek("orders", "shop", 10)
    assert message.attempt == 1
    scene.events.error = None
    await scene.start()
    await scene.passing(lambda: scene.events.published)
    await scene.stop()
    assert await scene.done("orders")


async def test_what_the_other_broker_refuses_is_a_failed_attempt_of_that_message_alone(
    scene: Scene, caplog: pytest.LogCaptureFixture
):
    handled = reserving(scene.app)
    scene.events.refuses = lambda message: message.body == b"2"
    await scene.start()
    await scene.app.publish_many("orders", [1, 2, 3])
    await scene.passing(lambda: "gave up on" in caplog.text)
    await scene.stop()
    assert handled == [1, 2, 3, 2]
    assert [message.body for message in scene.events.published] == [b"1", b"3"]
    (letter,) = await scene.backends["default"].broker.dead_letters()
    assert (letter.message.body, letter.reason) == (b"2", "ValueError: too large for this broker")
    assert [failure.attempt for failure in letter.history] == [1, 2]


async def test_a_crash_after_it_repeats_it_under_the_same_id_and_loses_nothing():
    app = Carteiro("shop", brokers={"default": "memory://", "events": "memory://"})
    app.topic("reserved", broker="events")
    handled: list[int] = []

    @app.subscriber("orders")
    @app.publisher("reserved")
    @app.publisher("noted")
    async def reserve(order: int) -> int:
        handled.append(order)
        return order

    async with TestApp(app) as t:
        t.crash_at(reserve, "before_ack")
        await t.publish("orders", 1)
        await t.advance(60)
        assert handled == [1, 1]
        assert t.published("noted") == [1]
        assert t.published("reserved") == [1, 1]
        assert len({message.id for message in t.messages("reserved")}) == 1


async def test_an_outcome_may_be_for_three_brokers():
    app = Carteiro("shop", brokers={"default": "memory://", "a": "memory://", "b": "memory://"})

    @app.subscriber("orders", broker="b")
    @app.publisher("done", broker="a")
    @app.publisher("done", broker="b")
    @app.publisher("done")
    async def handle(order: int) -> int:
        return order

    async with TestApp(app) as t:
        await t.publish("orders", 1, broker="b")
        await t.idle()
        assert sorted(str(one.broker) for one in t.messages("done")) == ["a", "b", "default"]
        assert t.groups("b")["orders", "shop"].in_flight == 0


async def test_what_nobody_gets_there_is_warned_of(scene: Scene, caplog: pytest.LogCaptureFixture):
    reserving(scene.app)
    await scene.start()
    await scene.app.publish("orders", 1)
    await scene.passing(lambda: scene.events.published)
    await scene.stop()
    assert caplog.text.count("no group gets `reserved`") == 1


async def test_where_the_store_is_apart_a_mark_is_made_once_all_is_published(monkeypatch: pytest.MonkeyPatch):
    """A mark before it would make a second delivery do nothing, and what was emitted would be lost by a crash."""
    clock = VirtualClock()
    backend: Any = open_backend("memory://", clock=clock)
    backend.broker.store = None
    steps: list[str] = []
    app = Carteiro("shop", backend, clock=clock)

    @app.subscriber("charges", idempotency=Idempotency(key=lambda message: message.body))
    @app.publisher("charged")
    async def charge(order: int) -> int:
        return order

    @app.subscriber("charged")
    async def charged(order: int) -> None:
        done.set()

    done = asyncio.Event()
    publish, write, consume = backend.broker.publish, backend.store.write, backend.broker.consume

    async def publishing(messages: Sequence[Outgoing]) -> Any:
        steps.extend(f"published {message.topic}" for message in messages)
        return await publish(messages)

    async def writing(writes: Sequence[Write]) -> Any:
        steps.extend("marked" for one in writes if one.value == b"done")
        return await write(writes)

    def consuming(subscriptions: Any) -> Any:
        consumer = consume(subscriptions)
        settle = consumer.settle

        async def settling(outcomes: Sequence[Outcome]) -> Any:
            steps.extend(f"settled {one.delivery.message.topic}" for one in outcomes)
            return await settle(outcomes)

        consumer.settle = settling
        return consumer

    monkeypatch.setattr(backend.broker, "publish", publishing)
    monkeypatch.setattr(backend.store, "write", writing)
    monkeypatch.setattr(backend.broker, "consume", consuming)
    running = asyncio.create_task(app.run())
    await app.ready()
    await app.publish("charges", 7)
    await done.wait()
    app.stop()
    await running
    assert [one for one in steps if one != "settled charged"] == [
        "published charges",
        "published charged",
        "marked",
        "settled charges",
    ]
