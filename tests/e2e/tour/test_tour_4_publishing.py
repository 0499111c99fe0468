"""Part 4: groups, broadcast, publishers, emitters, routers, types, and the ways to publish."""

import asyncio
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Annotated, Any

import msgspec
import pytest

from carteiro import (
    Carteiro,
    ConfigurationError,
    Emit,
    Message,
    NotConnected,
    RequestFailed,
    RequestTimeout,
    Retry,
    Router,
    Topic,
    Unroutable,
    constant,
)
from tests.e2e.tour.stage import Follower, Stage, follow, soon


def listen(stage: Stage, *topics: str) -> tuple[Carteiro, Follower]:
    """An app of its own that takes what is published to these topics, as (topic, body)."""
    app = stage.app("listener")

    async def hear(message: Message) -> tuple[str, bytes]:
        return message.topic, message.body

    for topic in topics:
        app.subscriber(topic)(hear)
    return app, follow(app)


# -- the tour's own file ---------------------------------------------------------------------------------------------


async def test_the_tours_publishing_reaches_every_group(stage: Stage, part: Callable[[str], ModuleType]):
    publishing = part("publishing")
    listener, heard = listen(stage, "stock.*", "customers.told")
    handled = follow(publishing.app)
    await stage.run(listener, publishing.app)

    await publishing.main()

    ended = await handled.many(6)
    assert sorted(one.message.body for one in ended) == sorted(
        [f'{{"id":{number},"sku":"A-7","paid":true}}'.encode() for number in (2, 3, 4)] * 2
    )
    assert {(await heard.next()).result[0] for _ in range(3)} == {"stock.reserved"}
    stock = await stage.group("orders.placed", "stock")
    assert (stock.delayed, stock.waiting) == (1, 0)


async def test_the_tours_router_types_and_emitters_work(stage: Stage, part: Callable[[str], ModuleType]):
    publishing = part("publishing")
    app = publishing.app
    listener, heard = listen(stage, "stock.*", "customers.told")
    handled = follow(app)
    await stage.run(listener, app)

    for topic in ("orders.cancelled", "orders.expired"):
        await app.publish(topic, publishing.order)
        assert {(await heard.next()).result for _ in range(2)} == {
            (there, b'{"order_id":1,"sku":"A-7"}') for there in ("stock.released", "customers.told")
        }
    await app.publish("orders.placed", publishing.Order(id=5, sku="A-7", paid=False))
    assert {(await heard.next()).result[0] for _ in range(2)} == {"stock.reserved", "stock.released"}
    await handled.many(4)

    await app.publish("user_channel", {"user_id": 1, "content": "bip"}, type="send_audio")
    assert (await handled.next()).result == "1 hears bip"
    await app.publish("user_channel", {"type": "send_text", "user_id": 1, "content": "hi"})
    assert (await handled.next()).result == "1 reads hi"


# -- groups ----------------------------------------------------------------------------------------------------------


async def test_each_group_gets_every_message_once_and_its_workers_share_them(stage: Stage):
    handled: list[tuple[str, int]] = []
    all_there = asyncio.Event()

    def worker() -> Carteiro:
        app = stage.app()

        async def note(group: str, number: int) -> None:
            handled.append((group, number))
            if len(handled) == 200:
                all_there.set()

        @app.subscriber("orders", group="stock", concurrency=5)
        async def stock(number: int) -> None:
            await note("stock", number)

        @app.subscriber("orders", group="payment", concurrency=5)
        async def payment(number: int) -> None:
            await note("payment", number)

        return app

    apps = [worker(), worker()]
    await stage.run(*apps)

    await apps[0].publish_many("orders", range(100))
    await soon(all_there.wait())
    for group in ("stock", "payment"):
        await stage.settled("orders", group)

    assert sorted(handled) == sorted((group, number) for group in ("stock", "payment") for number in range(100))


async def test_a_broadcast_gives_every_running_process_its_own_copy(stage: Stage):
    apps = [stage.app(), stage.app()]
    heard: list[Follower] = []
    for app in apps:

        @app.subscriber("prices.changed", group=None)
        async def forget(sku: str) -> str:
            return sku

        heard.append(follow(app))
    await stage.run(*apps)

    await apps[0].publish("prices.changed", "A-7")

    assert [(await follower.next()).result for follower in heard] == ["A-7", "A-7"]


async def test_a_broadcast_to_a_process_that_has_gone_waits_for_nobody(stage: Stage):
    app = stage.app()

    @app.subscriber("prices.changed", group=None)
    async def forget(sku: str) -> None: ...

    await stage.run(app)
    await stage.stop(app)

    async with stage.app("publisher") as publisher:
        with pytest.raises(Unroutable):
            await publisher.publish("prices.changed", "A-7", mandatory=True)


async def test_a_function_may_have_several_subscribers_and_publishers(stage: Stage):
    app = stage.app()

    @app.subscriber("orders.cancelled")
    @app.subscriber("orders.expired")
    @app.publisher("stock.released")
    @app.publisher("customers.told")
    async def release(order: int) -> int:
        return order

    listener, heard = listen(stage, "stock.released", "customers.told")
    await stage.run(app, listener)

    await app.publish("orders.cancelled", 1)
    await app.publish("orders.expired", 2)

    assert sorted(one.result for one in await heard.many(4)) == [
        ("customers.told", b"1"),
        ("customers.told", b"2"),
        ("stock.released", b"1"),
        ("stock.released", b"2"),
    ]


async def test_a_handler_that_returns_none_publishes_nothing(stage: Stage):
    app = stage.app()

    @app.subscriber("orders")
    @app.publisher("invoices")
    async def invoice(order: int) -> int | None:
        return order or None

    listener, heard = listen(stage, "invoices")
    await stage.run(app, listener)

    await app.publish_many("orders", [0, 1])

    assert (await heard.next()).result == ("invoices", b"1")
    assert heard.silent


async def test_a_publisher_makes_the_key_of_what_is_returned(stage: Stage):
    app = stage.app()

    @app.subscriber("orders")
    @app.publisher("invoices", key=lambda order: f"k{order}")
    async def invoice(order: int) -> int:
        return order

    @app.subscriber("invoices")
    async def see(message: Message) -> str | None:
        return message.key

    handled = follow(app)
    await stage.run(app)

    await app.publish("orders", 7)

    assert [one.result for one in await handled.many(2)] == [7, "k7"]


# -- routers ---------------------------------------------------------------------------------------------------------


async def test_a_router_puts_its_prefix_before_all_its_topics(stage: Stage):
    inner = Router(prefix="invoices.")
    outer = Router(prefix="orders.")

    @outer.subscriber("placed")
    @outer.publisher("accepted")
    async def accept(order: int) -> int:
        return order

    @inner.subscriber("sent")
    async def sent(order: int) -> str:
        return f"sent {order}"

    app = stage.app()
    outer.include(inner, prefix="all.")
    app.include(outer, prefix="br.")
    listener, heard = listen(stage, "br.orders.accepted")
    handled = follow(app)
    await stage.run(app, listener)

    await app.publish("br.orders.placed", 1)
    assert (await handled.next()).result == 1
    assert (await heard.next()).result == ("br.orders.accepted", b"1")
    await app.publish("br.orders.all.invoices.sent", 2)
    assert (await handled.next()).result == "sent 2"


async def test_a_routers_middleware_wraps_its_own_handlers_only(stage: Stage):
    told: list[str] = []

    async def tell(message: Message, call_next: Callable[[Message], Any]) -> Any:
        told.append(message.topic)
        return await call_next(message)

    router = Router(prefix="orders.", middleware=[tell])
    app = stage.app()

    @router.subscriber("placed")
    async def placed(order: int) -> None: ...

    @app.subscriber("greetings")
    async def greet(name: str) -> None: ...

    app.include(router)
    handled = follow(app)
    await stage.run(app)

    await app.publish("greetings", "Ana")
    await app.publish("orders.placed", 1)
    await handled.many(2)

    assert told == ["orders.placed"]


# -- types -----------------------------------------------------------------------------------------------------------


def channel(app: Carteiro, *, fallback: bool = False) -> None:
    @app.subscriber("channel", type="audio")
    async def audio(content: str, user: int) -> str:
        return f"audio {content}"

    @app.subscriber("channel", type="text")
    async def text(content: str, user: int) -> str:
        return f"text {content}"

    if fallback:

        @app.subscriber("channel")
        async def other(message: Message) -> str:
            return f"other {message.type}"


async def test_the_type_comes_from_the_header_or_else_from_the_bodys_field(stage: Stage):
    app = stage.app()
    channel(app)
    await stage.run(app)

    async def ask(body: dict[str, Any], type: str | None = None) -> Any:
        return await soon(app.request("channel", {"user": 1, "content": "hi", **body}, type=type))

    assert await ask({}, "audio") == "audio hi"
    assert await ask({"type": "text"}) == "text hi"
    assert await ask({"type": "text"}, "audio") == "audio hi"


async def test_a_handler_without_a_type_takes_what_no_other_does(stage: Stage):
    app = stage.app()
    channel(app, fallback=True)
    await stage.run(app)

    assert await soon(app.request("channel", {}, type="smoke")) == "other smoke"
    assert await soon(app.request("channel", [1, 2])) == "other None"


async def test_a_type_that_nobody_handles_is_dead_at_once_and_says_what_there_is(stage: Stage):
    app = stage.app()
    channel(app)
    await stage.run(app)

    await app.publish("channel", {}, type="smoke")
    await stage.settled("channel")

    (letter,) = await stage.dead("dlq_channel")
    assert "no handler for the type `smoke`: it has audio, text" in letter.reason
    assert letter.message.attempt == 1


async def test_a_request_of_a_type_that_nobody_handles_fails_without_waiting_for_its_timeout(stage: Stage):
    app = stage.app()
    channel(app)
    await stage.run(app)

    with pytest.raises(RequestFailed, match="no handler for the type `smoke`"):
        await soon(app.request("channel", {}, type="smoke", timeout=3600))


# -- requests --------------------------------------------------------------------------------------------------------


async def test_two_hundred_requests_share_one_inbox_and_each_gets_its_own_reply(stage: Stage):
    server, client = stage.app(), stage.app("client")

    @server.subscriber("double", concurrency=20)
    async def double(number: int) -> int:
        return 2 * number

    await stage.run(server)

    async with client:
        asked = [client.request("double", number, returns=int) for number in range(200)]
        assert await soon(asyncio.gather(*asked)) == [2 * number for number in range(200)]
        inboxes = [one for one in await (await stage.inspector()).groups() if one.topic.startswith("$reply")]
        assert len(inboxes) == 1


async def test_a_request_whose_handler_gives_up_fails_with_its_error(stage: Stage):
    app = stage.app()

    @app.subscriber("divide", retry=Retry(attempts=2, backoff=constant(0)))
    async def divide(number: int) -> float:
        return 1 / number

    handled = follow(app)
    await stage.run(app)

    with pytest.raises(RequestFailed, match="ZeroDivisionError: division by zero"):
        await soon(app.request("divide", 0))
    assert [one.message.attempt for one in await handled.many(2)] == [1, 2]


async def test_a_request_that_nobody_can_answer_fails_at_once(stage: Stage):
    async with stage.app() as app:
        with pytest.raises(Unroutable, match="no group gets `nobody`"):
            await soon(app.request("nobody", 1, timeout=3600))


async def test_a_request_that_is_not_answered_in_time_says_so_and_is_not_handled_any_more(stage: Stage):
    clock = stage.hold_time()
    app = stage.app()

    @app.subscriber("slow")
    async def slow(number: int) -> int:
        return number

    handled = follow(app)
    async with app:
        asked = asyncio.create_task(app.request("slow", 1, timeout=10))
        with pytest.raises(RequestTimeout, match="no reply from `slow` within 10 s"):
            await soon(stage.pass_until(asked))
    clock.advance_to(clock.time() + 1)
    await stage.run(app)
    await stage.settled("slow")

    assert handled.silent


async def test_a_request_under_way_fails_when_its_app_is_closed(stage: Stage):
    app = stage.app()

    @app.subscriber("slow")
    async def slow(number: int) -> None: ...

    async with app:
        asked = asyncio.create_task(app.request("slow", 1, timeout=3600))
        await stage.until("slow", lambda status: status.waiting > 0)

    with pytest.raises(NotConnected, match="the app was closed before `slow` had replied"):
        await soon(asked)


async def test_a_reply_is_decoded_as_what_was_asked_for(stage: Stage):
    app = stage.app()

    @app.subscriber("when")
    async def when() -> datetime:
        return datetime(2026, 11, 1, tzinfo=UTC)

    await stage.run(app)

    assert await soon(app.request("when", None, returns=datetime)) == datetime(2026, 11, 1, tzinfo=UTC)


# -- when ------------------------------------------------------------------------------------------------------------


async def test_a_delayed_message_comes_when_its_time_has_come(stage: Stage):
    clock = stage.hold_time()
    app = stage.app()

    @app.subscriber("reminders")
    async def remind(text: str) -> float:
        return clock.time()

    handled = follow(app)
    await stage.run(app)
    start = clock.time()

    await app.publish("reminders", "in five minutes", delay=timedelta(minutes=5))
    await app.publish("reminders", "in an hour", at=datetime.fromtimestamp(start + 3600, UTC))
    await app.publish("reminders", "in the past", at=datetime.fromtimestamp(start - 3600, UTC))
    await app.publish("reminders", "in ten minutes", delay="10m")

    ended = [await soon(stage.pass_until(handled.next(), step=60)) for _ in range(4)]

    texts = ["in the past", "in five minutes", "in ten minutes", "in an hour"]
    assert [one.message.body.decode().strip('"') for one in ended] == texts
    for one, due in zip(ended, (0, 300, 600, 3600), strict=True):
        assert one.result >= start + due


async def test_a_time_without_a_zone_is_refused(stage: Stage):
    async with stage.app() as app:
        with pytest.raises(ConfigurationError, match="give an aware datetime"):
            await app.publish("reminders", "?", at=datetime(2026, 11, 1))  # noqa: DTZ001


async def test_a_message_that_has_expired_is_dropped_and_not_dead(stage: Stage):
    clock = stage.hold_time()
    app = stage.app()

    @app.subscriber("prices")
    async def price(value: int) -> int:
        return value

    handled = follow(app)
    async with app:
        await app.publish("prices", 1, expires=60)
        await app.publish("prices", 2, expires=600)
    clock.advance_to(clock.time() + 61)
    await stage.run(app)

    assert (await handled.next()).result == 2
    await stage.settled("prices")
    assert handled.silent
    assert await stage.dead() == []


# -- many, and from anywhere -----------------------------------------------------------------------------------------


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
        assert app.connection.publisher.unrouted == {"nobody": 3, "nobody.else": 3}

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


# -- what goes out with the ack --------------------------------------------------------------------------------------


async def test_what_a_handler_emits_goes_out_only_if_it_succeeds(stage: Stage):
    app = stage.app()

    @app.subscriber("orders", retry=Retry(attempts=3, backoff=constant(0)))
    @app.publisher("results")
    async def pay(order: int, message: Message, paid: Annotated[Emit[str], Topic("paid")]) -> str:
        paid(f"attempt {message.attempt}")
        if message.attempt < 3:
            raise ConnectionError("the bank is away")
        return "done"

    listener, heard = listen(stage, "paid", "results")
    await stage.run(app, listener)

    await app.publish("orders", 1)

    assert sorted(one.result for one in await heard.many(2)) == [("paid", b'"attempt 3"'), ("results", b'"done"')]
    await stage.settled("orders")
    assert heard.silent


async def test_what_a_handler_emits_has_the_key_the_headers_and_the_delay_it_gives(stage: Stage):
    clock = stage.hold_time()
    app = stage.app()

    @app.subscriber("orders")
    async def take(order: int, invoice: Annotated[Emit[int], Topic("invoices")]) -> None:
        invoice(order, key="k", headers={"x-tenant": "br"}, delay=timedelta(hours=1))

    @app.subscriber("invoices")
    async def see(message: Message) -> tuple[str | None, str]:
        return message.key, message.headers["x-tenant"]

    handled = follow(app)
    await stage.run(app)
    start = clock.time()

    await app.publish("orders", 1)
    await handled.next()
    ended = await soon(stage.pass_until(handled.next(), step=60))

    assert ended.result == ("k", "br")
    assert clock.time() >= start + 3600


async def test_a_correlation_id_goes_on_to_all_that_a_handler_publishes_and_emits(stage: Stage):
    app = stage.app()

    @app.subscriber("orders")
    @app.publisher("returned")
    async def take(order: int, emit: Annotated[Emit[int], Topic("emitted")]) -> int:
        emit(order)
        await app.publish("published", order)
        await asyncio.create_task(app.publish("published.by.a.task", order))
        return order

    @app.subscriber("returned")
    @app.subscriber("emitted")
    @app.subscriber("published.#")
    async def see(message: Message) -> str:
        return message.correlation_id

    handled = follow(app)
    await stage.run(app)

    for number in range(3):
        await app.publish("orders", number, correlation_id=f"c{number}")
    ended = await handled.many(15)

    for one in ended:
        assert one.message.correlation_id == f"c{one.message.body.decode()}"


async def test_outside_a_handler_no_correlation_id_is_left_over(stage: Stage):
    app = stage.app()

    @app.subscriber("orders")
    async def take(order: int) -> None: ...

    handled = follow(app)
    await stage.run(app)
    await app.publish("orders", 1, correlation_id="c1")
    await handled.next()

    id = await app.publish("orders", 2)

    assert (await handled.next()).message.correlation_id == id


# -- middleware ------------------------------------------------------------------------------------------------------


async def test_consume_middleware_runs_from_the_first_installed_inwards(stage: Stage):
    app = stage.app()
    story: list[str] = []

    def layer(name: str) -> Any:
        async def tell(message: Message, call_next: Callable[[Message], Any]) -> Any:
            story.append(f"{name} in")
            result = await call_next(message)
            story.append(f"{name} out")
            return result

        return tell

    app.middleware(layer("first"))
    app.middleware(layer("second"))

    @app.subscriber("orders", middleware=[layer("own")])
    async def take(order: int) -> None:
        story.append("handler")

    handled = follow(app)
    await stage.run(app)
    await app.publish("orders", 1)
    await handled.next()
    await stage.settled("orders")

    assert story == ["first in", "second in", "own in", "handler", "own out", "second out", "first out"]


async def test_consume_middleware_can_replace_the_message_and_the_result(stage: Stage):
    app = stage.app()

    @app.middleware
    async def shout(message: Message, call_next: Callable[[Message], Any]) -> Any:
        return (await call_next(msgspec.structs.replace(message, body=message.body.upper()))) + "!"

    @app.subscriber("greetings")
    async def greet(name: str) -> str:
        return f"hello, {name}"

    await stage.run(app)

    assert await soon(app.request("greetings", "Ana")) == "hello, ANA!"


async def test_consume_middleware_that_does_not_go_on_drops_the_message_and_one_that_raises_fails_it(stage: Stage):
    app = stage.app(retry=Retry(attempts=1))

    @app.middleware
    async def guard(message: Message, call_next: Callable[[Message], Any]) -> Any:
        if message.body == b"1":
            return None
        if message.body == b"2":
            raise PermissionError("not you")
        return await call_next(message)

    @app.subscriber("doors")
    async def enter(number: int) -> int:
        return number

    handled = follow(app)
    await stage.run(app)

    await app.publish_many("doors", [1, 2, 3])

    assert (await handled.next()).result == 3
    await stage.settled("doors")
    assert [letter.reason for letter in await stage.dead()] == ["PermissionError: not you"]
    assert handled.silent


async def test_publish_middleware_sees_what_is_published_and_what_is_emitted_and_can_change_drop_and_double_it(
    stage: Stage,
):
    app = stage.app()
    story: list[tuple[str, bytes]] = []

    @app.publish_middleware
    async def outer(outgoing: Any, call_next: Callable[[Any], Any]) -> None:
        story.append((outgoing.topic, outgoing.body))
        await call_next(outgoing)

    @app.publish_middleware
    async def inner(outgoing: Any, call_next: Callable[[Any], Any]) -> None:
        if outgoing.body == b"0":
            return
        await call_next(msgspec.structs.replace(outgoing, headers={**outgoing.headers, "x-tenant": "br"}))
        if outgoing.body == b"2":
            await call_next(outgoing)

    @app.subscriber("orders")
    @app.publisher("invoices")
    async def take(order: int, message: Message) -> int:
        return order - 1 if message.headers.get("x-tenant") else order

    @app.subscriber("invoices")
    async def see(message: Message) -> tuple[bytes, str | None]:
        return message.body, message.headers.get("x-tenant")

    handled = follow(app)
    await stage.run(app)

    await app.publish("orders", 3)  # 2 is emitted, and doubled
    ended = await handled.many(3)
    await app.publish("orders", 0)  # dropped
    await app.publish_many("orders", [1])  # 0 is emitted, and dropped
    await handled.next()
    await stage.settled("orders")

    assert {one.result for one in ended if one.message.topic == "invoices"} == {(b"2", "br"), (b"2", None)}
    assert story == [
        ("orders", b"3"), ("invoices", b"2"), ("orders", b"0"), ("orders", b"1"), ("invoices", b"0"),
    ]  # fmt: skip
    assert handled.silent
