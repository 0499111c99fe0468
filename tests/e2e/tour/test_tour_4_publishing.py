"""Part 4: groups, broadcast, publishers, routers and types."""

import asyncio
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from carteiro import (
    Carteiro,
    Message,
    RequestFailed,
    Router,
    Unroutable,
)
from tests.e2e.tour.stage import Follower, Stage, follow, soon

# -- the tour's own file ---------------------------------------------------------------------------------------------


async def test_the_tours_publishing_reaches_every_group(stage: Stage, part: Callable[[str], ModuleType]):
    publishing = part("publishing")
    listener, heard = stage.listen("stock.*", "customers.told")
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
    listener, heard = stage.listen("stock.*", "customers.told")
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

    listener, heard = stage.listen("stock.released", "customers.told")
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

    listener, heard = stage.listen("invoices")
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
    listener, heard = stage.listen("br.orders.accepted")
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
