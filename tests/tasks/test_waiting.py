"""Tasks that wait for events, and hold no worker meanwhile."""

import asyncio
from typing import Any

import pytest

from carteiro import (
    EventTimeout,
    InvalidBody,
    Message,
    Outgoing,
    Retry,
    RetryLater,
    TaskCancelled,
    step,
    wait_for,
)
from carteiro.ports.store import Entry
from carteiro.tasks.records import record_of, task_key
from tests.e2e.tour.stage import Stage, soon
from tests.tasks.things import AT_ONCE, ONCE, TWICE, Gate, Order, got, once, told


async def waits(result: Any) -> None:
    """Until the task waits for an event."""

    async def look() -> bool:
        return bool(await result.status() == "waiting")

    await once(look)


async def test_a_task_waits_for_an_event_and_goes_on_with_its_body(stage: Stage):
    app = stage.app()
    ran: list[str] = []

    @app.task(waits_for=["orders.paid"])
    async def work(order: int) -> str:
        ran.append("before")
        paid = await wait_for("orders.paid", key=str(order))
        ran.append("after")
        return f"{order}: {paid}"

    await stage.run(app)
    result = await work.delay(7)
    await waits(result)
    await app.publish("orders.paid", "no", key="8")
    await app.publish("orders.paid", "yes", key="7")

    assert await got(result) == "7: yes"
    assert ran == ["before", "before", "after"]


async def test_an_event_of_which_nobody_has_heard_is_listened_to_when_a_task_waits_for_it(stage: Stage):
    workers = [stage.app(), stage.app()]
    for app in workers:

        @app.task
        async def work() -> Any:
            return await wait_for("orders.paid", key="7")

    await stage.run(*workers)
    sender = stage.app()
    task = sender.task(work.function)
    async with sender:
        result = await task.delay()
        await waits(result)
        await sender.publish("orders.paid", {"total": 10}, key="7")

        assert await got(result) == {"total": 10}


async def test_an_event_that_came_before_the_task_waited_for_it_is_not_missed(stage: Stage):
    app = stage.app()
    gate = Gate()
    attempts: list[int] = []

    @app.task(waits_for=["orders.paid"])
    async def work() -> str:
        attempts.append(1)
        await gate.through()
        return str(await wait_for("orders.paid", key="7"))

    await stage.run(app)
    result = await work.delay()
    await soon(gate.began.get())
    await app.publish("orders.paid", "early", key="7")
    await stage.settled("orders.paid", "shop.waits")
    gate.open()

    assert await got(result) == "early"
    assert attempts == [1]


async def test_an_event_from_before_the_task_was_sent_is_no_event_for_it(stage: Stage):
    app = stage.app()

    @app.task(waits_for=["orders.paid"])
    async def work() -> str:
        return str(await wait_for("orders.paid", key="7"))

    await stage.run(app)
    await app.publish("orders.paid", "old", key="7")
    await stage.settled("orders.paid", "shop.waits")
    result = await work.delay()
    await waits(result)
    await app.publish("orders.paid", "new", key="7")

    assert await got(result) == "new"


async def test_events_and_tasks_that_meet_at_the_same_time_all_find_each_other(stage: Stage):
    app = stage.app()

    @app.task(waits_for=["orders.paid"])
    async def work(number: int) -> str:
        return str(await wait_for("orders.paid", key=str(number)))

    await stage.run(app)

    async def meet(number: int) -> None:
        result = await work.delay(number)
        await app.publish("orders.paid", f"paid {number}", key=str(number))
        assert await got(result) == f"paid {number}"

    await asyncio.gather(*(meet(number) for number in range(30)))


async def test_many_tasks_wait_for_one_event_and_any_key_will_do(stage: Stage):
    app = stage.app()

    @app.task(waits_for=["orders.paid"])
    async def work() -> str:
        return str(await wait_for("orders.paid"))

    await stage.run(app)
    results = [await work.delay() for _ in range(5)]
    for result in results:
        await waits(result)
    await app.publish("orders.paid", "yes", key="7")

    assert [await got(result) for result in results] == ["yes"] * 5


async def test_keys_that_begin_alike_are_not_alike(stage: Stage):
    app = stage.app()

    @app.task(waits_for=["orders.paid"])
    async def work(key: str) -> str:
        return str(await wait_for("orders.paid", key=key))

    await stage.run(app)
    results = {key: await work.delay(key) for key in ("a", "a:b", "*")}
    for result in results.values():
        await waits(result)
    for key in ("a:b", "*", "a"):
        await app.publish("orders.paid", f"for {key}", key=key)

    assert {key: await got(result) for key, result in results.items()} == {key: f"for {key}" for key in results}


async def test_events_of_different_topics_are_waited_for_in_a_row(stage: Stage):
    app = stage.app()

    @app.task(waits_for=["orders.paid", "orders.shipped"])
    async def work() -> list[Any]:
        return [await wait_for("orders.paid", key="7"), await wait_for("orders.shipped", key="7")]

    await stage.run(app)
    result = await work.delay()
    await waits(result)
    await app.publish("orders.shipped", "shipped", key="7")  # before it is waited for
    await stage.settled("orders.shipped", "shop.waits")
    await app.publish("orders.paid", "paid", key="7")

    assert await got(result) == ["paid", "shipped"]


async def test_two_waits_for_one_topic_take_two_events(stage: Stage):
    app = stage.app()

    @app.task(waits_for=["votes"])
    async def work() -> list[Any]:
        return [await wait_for("votes"), await wait_for("votes"), await wait_for("votes")]

    await stage.run(app)
    result = await work.delay()
    for vote in ("yes", "no", "maybe"):
        await waits(result)
        await app.publish("votes", vote)
        await stage.settled("votes", "shop.waits")
        await stage.settled("tasks.shop.default")

    assert await got(result) == ["yes", "no", "maybe"]


async def test_an_event_that_is_delivered_twice_is_one_event(stage: Stage):
    app = stage.app()

    @app.task(waits_for=["votes"])
    async def work() -> list[Any]:
        return [await wait_for("votes", key="7"), await wait_for("votes", key="7")]

    await stage.run(app)
    result = await work.delay()
    await waits(result)
    first = Outgoing("the-vote", "votes", b'"yes"', "7", {}, "the-vote")
    await app.connection.publisher.publish(first)
    await stage.settled("votes", "shop.waits")
    await stage.settled("tasks.shop.default")
    await app.connection.publisher.publish(first)
    await stage.settled("votes", "shop.waits")
    await waits(result)
    await app.publish("votes", "no", key="7")

    assert await got(result) == ["yes", "no"]


async def test_a_task_that_waits_holds_no_worker(stage: Stage):
    app = stage.app()
    app.task_queue("default", concurrency=1)

    @app.task(waits_for=["orders.paid"])
    async def patient() -> str:
        return str(await wait_for("orders.paid"))

    @app.task
    async def other() -> str:
        return "other"

    await stage.run(app)
    results = [await patient.delay() for _ in range(3)]
    for result in results:
        await waits(result)

    assert await got(await other.delay()) == "other"
    await app.publish("orders.paid", "yes")
    assert [await got(result) for result in results] == ["yes"] * 3


async def test_an_event_that_does_not_come_in_time_is_a_timeout(stage: Stage):
    app = stage.app()

    @app.task(waits_for=["orders.paid"], retry=TWICE)
    async def work(message: Message) -> str:
        try:
            await wait_for("orders.paid", key="7", timeout=0.3)
        except EventTimeout as error:
            if message.attempt == 1:
                raise RetryLater(delay=0) from error  # and it stays one
            return str(error)
        return "it came"

    await stage.run(app)
    unchecked: Any = work

    assert await got(await unchecked.delay()) == "no `orders.paid` with the key `7` came in time"


async def test_an_event_that_comes_in_time_is_no_timeout_later(stage: Stage):
    app = stage.app()
    gate = Gate()

    @app.task(waits_for=["orders.paid"])
    async def work() -> str:
        paid = await wait_for("orders.paid", key="7", timeout=0.5)
        await gate.through()
        return str(paid)

    await stage.run(app)
    result = await work.delay()
    await waits(result)
    await app.publish("orders.paid", "yes", key="7")
    await soon(gate.began.get())
    await stage.until("tasks.shop.default", lambda of: of.left == 1)  # the alarm has come, and is gone
    gate.open()

    assert await got(result) == "yes"


async def test_a_task_waits_longer_than_any_lease_or_result(stage: Stage):
    stage.hold_time()
    app = stage.app(lease=7200)

    @app.task(waits_for=["orders.paid"])
    async def work(days: int) -> str:
        return str(await wait_for("orders.paid", key="7", timeout=f"{days}d"))

    await stage.run(app)
    short, long = await work.delay(2), await work.delay(40)
    with pytest.raises(EventTimeout):
        await soon(stage.pass_until(short.get(), step=3600, most=3 * 86_400))
    await app.publish("orders.paid", "yes", key="7")

    assert await soon(stage.pass_until(long.get(), step=60)) == "yes"


async def test_what_an_event_is_to_be_is_said_by_returns(stage: Stage):
    app = stage.app()

    @app.task(waits_for=["orders.placed"], retry=ONCE)
    async def work(key: str) -> str:
        order = await wait_for("orders.placed", key=key, returns=Order)
        return f"order {order.id} of {order.sku}"

    await stage.run(app)
    right, wrong = await work.delay("1"), await work.delay("2")
    await app.publish("orders.placed", Order(id=1), key="1")
    await app.publish("orders.placed", "nonsense", key="2")

    assert await got(right) == "order 1 of tea"
    with pytest.raises(InvalidBody, match=r"event of `orders.placed` is not what wait_for\(returns=…\) says"):
        await got(wrong)


async def test_a_task_waits_on_while_workers_come_and_go(stage: Stage):
    app = stage.app()

    @app.task
    async def work() -> str:
        first = await wait_for("orders.paid", key="7", timeout="1d")
        return f"{first}, {await wait_for('orders.shipped', key='7')}"

    async with app:
        await stage.run(app)
        result = await work.delay()
        await waits(result)
        await stage.stop(app)
        await app.publish("orders.paid", "paid", key="7")
        await stage.run(app)

        def waits_for_the_next(entry: Entry | None) -> bool:
            record = record_of(entry)
            return record is not None and record.waits_for == "orders.shipped"

        await told(app, task_key(result.id), waits_for_the_next)
        await stage.stop(app)
        await app.publish("orders.shipped", "shipped", key="7")
        await stage.run(app)

        assert await got(result) == "paid, shipped"


async def test_steps_before_a_wait_are_not_repeated_after_it(stage: Stage):
    app = stage.app()
    done: list[str] = []

    async def charge() -> int:
        done.append("charge")
        return 100

    @app.task(waits_for=["orders.paid"], retry=Retry(attempts=3, backoff=AT_ONCE))
    async def work() -> list[Any]:
        price = await step("charge", charge)
        paid = await wait_for("orders.paid", key="7")
        done.append("after")
        if done.count("after") == 1:
            raise ValueError("again")
        return [price, paid]

    await stage.run(app)
    result = await work.delay()
    await waits(result)
    await app.publish("orders.paid", "yes", key="7")

    assert await got(result) == [100, "yes"]
    assert done == ["charge", "after", "after"]


async def test_a_task_that_has_begun_before_it_expired_goes_on_after_its_event(stage: Stage):
    clock = stage.hold_time()
    app = stage.app()

    @app.task(waits_for=["orders.paid"])
    async def work() -> str:
        return str(await wait_for("orders.paid", key="7"))

    await stage.run(app)
    result = await work.apply_async(expires="1h")
    await stage.pass_until(waits(result))
    clock.advance_to(clock.time() + 7200)
    await app.publish("orders.paid", "yes", key="7")

    assert await soon(stage.pass_until(result.get())) == "yes"


async def test_a_run_goes_on_through_a_task_that_waits(stage: Stage):
    app = stage.app()

    @app.task
    async def first(number: int) -> int:
        return number + 1

    @app.task(waits_for=["orders.paid"])
    async def second(number: int, text: str) -> str:
        return f"{number} {text} {await wait_for('orders.paid', key='7')}"

    @app.task
    async def third(text: str) -> str:
        return text.upper()

    await stage.run(app)
    result = await (first.s(1) | second.s("is") | third.s()).delay()
    node = app.tasks.result(f"{result.id}.1")
    await waits(app.tasks.result(f"{result.id}.2"))
    assert await node.status() == "succeeded"
    await app.publish("orders.paid", "paid", key="7")

    assert await got(result) == "2 IS PAID"


async def test_a_run_that_is_cancelled_while_a_task_of_it_waits_does_not_go_on(stage: Stage):
    app = stage.app()
    ran: list[int] = []

    @app.task(waits_for=["orders.paid"])
    async def waiting() -> None:
        await wait_for("orders.paid", key="7")
        ran.append(1)

    await stage.run(app)
    result = await (waiting.s() | waiting.si()).delay()
    await waits(app.tasks.result(f"{result.id}.1"))
    assert await result.cancel() is True
    await app.publish("orders.paid", "yes", key="7")
    await stage.settled("orders.paid", "shop.waits")
    await stage.settled("tasks.shop.default")

    assert ran == []
    with pytest.raises(TaskCancelled):
        await got(result)
