"""Part 5: dead letters, and what a worker that dies leaves."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

import pytest

from carteiro import (
    Emit,
    Message,
    Outgoing,
    Reject,
    RequestFailed,
    Retry,
    Topic,
    constant,
)
from tests.e2e.tour.stage import Stage, follow, soon


async def test_dead_letters_are_kept_apart_by_group_where_several_would_collide(stage: Stage):
    app = stage.app()

    @app.subscriber("orders", group="stock")
    @app.subscriber("orders", group="payment")
    async def fail(order: int) -> None:
        raise Reject("no")

    @app.subscriber("greetings", group=None)
    @app.subscriber("greetings")
    async def greet(name: str) -> None:
        raise Reject("rude")

    await stage.run(app)
    await app.publish("orders", 1)
    await app.publish("greetings", "Ana")
    for topic, group in (("orders", "stock"), ("orders", "payment"), ("greetings", "shop")):
        await stage.settled(topic, group)

    queues = {letter.queue for letter in await stage.dead()}
    assert {"dlq_orders.stock", "dlq_orders.payment", "dlq_greetings"} <= queues


async def test_a_dead_letter_queue_is_a_topic_that_one_can_subscribe_to(stage: Stage):
    app = stage.app()

    @app.subscriber("orders", retry=Retry(attempts=2, backoff=constant(0)))
    async def fail(order: int) -> None:
        raise ValueError("wrong order")

    @app.subscriber("dlq_orders")
    async def bury(order: int, message: Message) -> dict[str, Any]:
        return {"order": order, "key": message.key, **message.headers}

    handled = follow(app)
    await stage.run(app)

    await app.publish("orders", 7, key="k7", headers={"x-tenant": "br"}, correlation_id="c7")
    *_, buried = await handled.many(3)

    assert buried.result == {
        "order": 7,
        "key": "k7",
        "x-tenant": "br",
        "dead-reason": "ValueError: wrong order",
        "dead-topic": "orders",
        "dead-group": "shop",
        "dead-attempts": "2",
    }
    assert buried.message.correlation_id == "c7"


async def test_a_replay_goes_to_the_group_that_failed_and_to_no_other_and_starts_anew(stage: Stage):
    app = stage.app()
    paid = asyncio.Event()

    @app.subscriber("orders", group="stock")
    async def stock(order: int) -> str:
        return f"stock {order}"

    @app.subscriber("orders", group="payment", retry=Retry(attempts=1))
    async def payment(order: int, message: Message) -> str:
        if not paid.is_set():
            raise ConnectionError("the bank is away")
        return f"payment {order}, attempt {message.attempt}"

    handled = follow(app)
    await stage.run(app)
    await app.publish("orders", 7)
    await handled.many(2)
    await stage.settled("orders", "payment")
    paid.set()

    inspector = await stage.inspector()
    (letter,) = await inspector.dead_letters("dlq_orders.payment")
    assert await inspector.replay("dlq_orders.payment", ids=[letter.id], body=b"8") == 1

    assert (await handled.next()).result == "payment 8, attempt 1"
    await stage.settled("orders", "payment")
    assert handled.silent
    assert await stage.dead() == []


async def test_an_emit_and_an_ack_are_one_even_where_the_worker_dies(stage: Stage):
    stage.hold_time()
    app = stage.mortal_app(lease=30)
    ids: list[str] = []

    @app.publish_middleware
    async def note(outgoing: Outgoing, call_next: Callable[[Outgoing], Any]) -> None:
        if outgoing.topic == "paid":
            ids.append(outgoing.id)
        await call_next(outgoing)

    @app.subscriber("orders")
    async def pay(order: int, message: Message, paid: Annotated[Emit[int], Topic("paid")]) -> None:
        paid(message.attempt)
        if message.attempt < 3:
            app.crash_at("orders", "before_ack")

    @app.subscriber("paid")
    async def see(attempt: int) -> int:
        return attempt

    handled = follow(app)
    await stage.run(app)

    await app.publish("orders", 1)
    ended = await soon(stage.pass_until(handled.many(4)))

    assert ended[-1].result == 3
    assert app.crashes == 2
    assert len(ids) == 3
    assert len(set(ids)) == 1
    await stage.settled("orders")
    await stage.settled("paid")
    assert handled.silent


@pytest.mark.parametrize("point", ["claimed", "before_ack"])
async def test_a_worker_that_dies_is_an_attempt(stage: Stage, point: Any):
    stage.hold_time()
    app = stage.mortal_app(lease=30)

    @app.subscriber("orders")
    async def take(message: Message) -> int:
        return message.attempt

    handled = follow(app)
    await stage.run(app)
    app.crash_at("orders", point)

    await app.publish("orders", 1)
    ended = await soon(stage.pass_until(handled.many(1 if point == "claimed" else 2)))

    assert ended[-1].result == 2
    await stage.settled("orders")


async def test_a_message_that_kills_its_workers_is_dead_for_that_and_its_neighbours_are_not(stage: Stage):
    stage.hold_time()
    app = stage.mortal_app(lease=30)
    done: set[int] = set()

    @app.subscriber("orders", concurrency=10, retry=Retry(attempts=3, backoff=constant(0)))
    async def take(order: int) -> None:
        if order == 7:
            app.crash_at("orders", "before_ack")
        else:
            done.add(order)

    @app.subscriber("dlq_orders")
    async def bury(order: int) -> None: ...

    handled = follow(app)
    async with stage.app("publisher"), app:
        await app.publish_many("orders", range(20))
    await stage.run(app)

    async def buried() -> None:
        while (await handled.next()).message.topic != "dlq_orders":
            pass

    await soon(stage.pass_until(buried()))
    await soon(stage.pass_until(stage.settled("orders")))

    (letter,) = await stage.dead("dlq_orders")
    assert letter.message.body == b"7"
    assert letter.reason == "WorkerLost: the worker died or lost its lease 3 times while it held this message"
    assert done == set(range(20)) - {7}
    assert app.crashes == 3


async def test_a_request_that_kills_its_workers_fails_with_that(stage: Stage):
    stage.hold_time()
    app = stage.mortal_app(lease=30)

    @app.subscriber("orders", retry=Retry(attempts=2, backoff=constant(0)))
    async def take(order: int) -> None:
        app.crash_at("orders", "before_ack")

    await stage.run(app)

    async with stage.app("client") as client:
        with pytest.raises(RequestFailed, match="WorkerLost: the worker died"):
            await soon(stage.pass_until(client.request("orders", 1, timeout=3600)))
