"""Part 4: what goes out with the ack, and middleware."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Any

import msgspec

from carteiro import (
    Emit,
    Message,
    Retry,
    Topic,
    constant,
)
from tests.e2e.tour.stage import Stage, follow, soon

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

    listener, heard = stage.listen("paid", "results")
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
