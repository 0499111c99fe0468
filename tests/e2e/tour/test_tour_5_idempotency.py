"""Part 5: doing once what is asked for twice."""

import asyncio
from datetime import timedelta

import pytest

from carteiro import (
    Idempotency,
    Message,
    Reject,
    RequestFailed,
    Retry,
    constant,
)
from tests.e2e.tour.stage import Stage, follow, soon


async def test_of_two_at_the_same_time_with_one_key_only_one_is_handled(stage: Stage):
    stage.hold_time()
    apps = [stage.app(), stage.app()]
    running, finish = asyncio.Event(), asyncio.Event()
    calls: list[int] = []
    for app in apps:

        @app.subscriber("payments", idempotency=Idempotency(key="order.id"), concurrency=5)
        async def charge(message: Message) -> None:
            calls.append(1)
            running.set()
            await finish.wait()

    await stage.run(*apps)
    for _ in range(5):
        await apps[0].publish("payments", {"order": {"id": 1}})
    await soon(stage.pass_until(running.wait()))
    finish.set()
    await soon(stage.pass_until(stage.settled("payments"), step=0.1))

    assert calls == [1]
    assert await stage.dead() == []


async def test_where_the_first_fails_for_good_the_second_is_handled(stage: Stage):
    app = stage.app()

    @app.subscriber("payments", idempotency=Idempotency(key="order_id"), retry=Retry(attempts=1))
    async def charge(order_id: int, amount: int) -> int:
        if amount < 0:
            raise Reject("no such amount")
        return amount

    handled = follow(app)
    await stage.run(app)

    await app.publish("payments", {"order_id": 1, "amount": -5})
    await handled.next()
    await stage.settled("payments")
    await app.publish("payments", {"order_id": 1, "amount": 5})

    assert (await handled.next()).result == 5


async def test_where_the_first_kills_its_workers_the_second_is_handled(stage: Stage):
    stage.hold_time()
    app = stage.mortal_app(lease=30)

    @app.subscriber("payments", idempotency=Idempotency(key="order_id"), retry=Retry(attempts=2, backoff=constant(0)))
    async def charge(order_id: int, amount: int) -> int:
        if amount < 0:
            app.crash_at("payments", "before_ack")
        return amount

    handled = follow(app)
    await stage.run(app)

    await app.publish("payments", {"order_id": 1, "amount": -5})
    await soon(stage.pass_until(stage.settled("payments")))
    await handled.many(2)
    await app.publish("payments", {"order_id": 1, "amount": 5})
    ended = await soon(stage.pass_until(handled.next(), most=600))

    assert ended.result == 5
    assert len(await stage.dead("dlq_payments")) == 1


async def test_a_retry_of_the_same_message_is_no_duplicate(stage: Stage):
    app = stage.app()

    @app.subscriber("payments", idempotency=Idempotency(key="order_id"), retry=Retry(attempts=3, backoff=constant(0)))
    async def charge(message: Message) -> int:
        if message.attempt < 3:
            raise ConnectionError("the bank is away")
        return message.attempt

    handled = follow(app)
    await stage.run(app)

    await app.publish("payments", {"order_id": 1})

    assert [one.result for one in await handled.many(3)] == [None, None, 3]


async def test_a_mark_ends_with_its_ttl_and_belongs_to_its_group(stage: Stage):
    clock = stage.hold_time()
    app = stage.app()

    once = Idempotency(key="id", ttl=timedelta(hours=1))

    @app.subscriber("payments", group="payment", idempotency=once)
    async def pay(id: int, n: int) -> str:
        return f"payment {n}"

    @app.subscriber("payments", group="audit", idempotency=once)
    async def audit(id: int, n: int) -> str:
        return f"audit {n}"

    handled = follow(app)
    await stage.run(app)

    for n in (1, 2):
        await app.publish("payments", {"id": 7, "n": n})
        for group in ("payment", "audit"):
            await soon(stage.pass_until(stage.settled("payments", group), step=0.1))
    clock.advance_to(clock.time() + 3601)
    await app.publish("payments", {"id": 7, "n": 3})

    ended = await soon(stage.pass_until(handled.many(4)))
    assert sorted(one.result for one in ended) == ["audit 1", "audit 3", "payment 1", "payment 3"]


async def test_a_body_without_the_key_is_dead_and_says_so(stage: Stage):
    app = stage.app()

    @app.subscriber("payments", idempotency=Idempotency(key="order.id"))
    async def charge(message: Message) -> None: ...

    await stage.run(app)

    with pytest.raises(RequestFailed, match=r"the body has no field `order\.id`, which is its idempotency key"):
        await soon(app.request("payments", {"order": 7}))
