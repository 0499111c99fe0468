"""Part 4: publishing many, once, for nobody, and from code that has no event loop."""

import asyncio
import threading

import pytest

from carteiro import (
    Message,
    NotConnected,
    Unroutable,
)
from tests.e2e.tour.stage import Stage, follow


async def test_publish_many_keeps_the_order_and_gives_the_ids(stage: Stage):
    app = stage.app()

    @app.subscriber("numbers", concurrency=1)
    async def take(number: int, message: Message) -> tuple[int, str | None, str | None]:
        return number, message.key, message.headers.get("x")

    handled = follow(app)
    async with app:
        ids = await app.publish_many("numbers", range(50), key=lambda number: f"k{number % 3}", headers={"x": "y"})
    await stage.run(app)

    ended = await handled.many(50)
    assert [one.result for one in ended] == [(number, f"k{number % 3}", "y") for number in range(50)]
    assert [one.message.id for one in ended] == ids


async def test_code_without_a_loop_publishes_and_asks_through_the_running_app(stage: Stage):
    app = stage.app()

    @app.subscriber("double")
    async def double(number: int) -> int:
        return 2 * number

    handled = follow(app)
    await stage.run(app)

    id = await asyncio.to_thread(app.publish_sync, "double", 1, key="k")
    assert (await handled.next()).message.id == id
    ids = await asyncio.to_thread(app.publish_many_sync, "double", [2, 3], key=str)
    ended = await handled.many(2)
    assert sorted((one.message.id, one.message.key) for one in ended) == sorted(zip(ids, ("2", "3"), strict=True))
    assert await asyncio.to_thread(app.request_sync, "double", 21) == 42


async def test_a_plain_function_publishes_from_its_thread_with_its_messages_correlation_id(stage: Stage):
    app = stage.app()

    @app.subscriber("orders")
    def accept(order: int) -> str:
        app.publish_sync("invoices", order)
        return threading.current_thread().name

    @app.subscriber("invoices")
    async def invoice(order: int, message: Message) -> str:
        return message.correlation_id

    handled = follow(app)
    await stage.run(app)

    await app.publish("orders", 1, correlation_id="c1")

    results = {one.message.topic: one.result for one in await handled.many(2)}
    assert "accept" in results["orders"]
    assert results["invoices"] == "c1"


async def test_on_a_loop_the_sync_calls_say_what_to_use_instead(stage: Stage):
    async with stage.app() as app:
        for call in (app.publish_sync, app.request_sync):
            with pytest.raises(NotConnected, match=r"this thread has an event loop.*await app\."):
                call("orders", 1)
        with pytest.raises(NotConnected, match=r"this thread has an event loop.*await app\."):
            app.publish_many_sync("orders", [1])


async def test_a_publish_that_is_not_connected_says_how_to_be(stage: Stage):
    with pytest.raises(NotConnected, match=r"app `shop` is not connected: use `async with app:`"):
        await stage.app().publish("orders", 1)


async def test_within_the_window_an_id_is_published_once(stage: Stage):
    clock = stage.hold_time()
    app = stage.app(dedupe="2m")

    @app.subscriber("orders")
    async def take(order: int) -> int:
        return order

    handled = follow(app)
    await stage.run(app)

    for order in (1, 2):
        assert await app.publish("orders", order, id="order-1") == "order-1"
    await app.publish("orders", 3)
    assert sorted([(await handled.next()).result, (await handled.next()).result]) == [1, 3]

    clock.advance_to(clock.time() + 121)
    await app.publish("orders", 4, id="order-1")
    assert (await handled.next()).result == 4
    assert handled.silent


async def test_a_message_for_nobody_is_warned_of_once_a_topic(stage: Stage, caplog: pytest.LogCaptureFixture):
    async with stage.app() as app:
        for number in range(3):
            await app.publish("nobody", number)
        await app.publish_many("nobody.else", range(3))
        assert app.connection.broker.unrouted.counts == {"nobody": 3, "nobody.else": 3}

    warnings = [record.getMessage() for record in caplog.records if "no group gets" in record.getMessage()]
    assert len(warnings) == 2
    assert warnings[0] == "no group gets `nobody`: what is published to it is gone (said once a topic)"


async def test_a_mandatory_message_for_nobody_raises(stage: Stage):
    async with stage.app() as app:
        with pytest.raises(Unroutable, match="no group gets `nobody`: start a worker that subscribes to it"):
            await app.publish("nobody", 1, mandatory=True)
        with pytest.raises(Unroutable, match="no group gets `nobody`"):
            await app.publish_many("nobody", [1], mandatory=True)


async def test_a_publisher_whose_code_has_the_handler_declares_its_group(stage: Stage):
    app = stage.app()

    @app.subscriber("orders")
    async def take(order: int) -> int:
        return order

    async with app:
        await app.publish("orders", 1, mandatory=True)
    assert (await stage.group("orders")).waiting == 1
