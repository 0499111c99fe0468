"""Steps within a task, whose results are remembered."""

import asyncio
from typing import Any

import pytest

from carteiro import (
    ConfigurationError,
    InvalidBody,
    Message,
    Unencodable,
    step,
    wait_for,
)
from tests.e2e.tour.stage import Stage, soon
from tests.tasks.things import ONCE, THRICE, TWICE, Gate, Order, PaymentDown, Point, got


async def test_a_step_that_is_done_is_not_repeated_when_the_task_is_tried_again(stage: Stage):
    app = stage.app()
    done: list[str] = []

    async def charge(order: int) -> str:
        done.append("charge")
        return f"payment of {order}"

    def ship(payment: str) -> str:
        done.append("ship")
        if done.count("ship") < 2:
            raise PaymentDown("Itaú", 503)
        return f"{payment}, shipped"

    @app.task(retry=THRICE)
    async def work(order: int) -> str:
        payment = await step("charge", charge, order)
        return await step("ship", ship, payment)

    await stage.run(app)

    assert await got(await work.delay(7)) == "payment of 7, shipped"
    assert done == ["charge", "ship", "ship"]


async def test_a_step_that_is_done_is_not_repeated_by_who_takes_the_task_over(stage: Stage):
    app = stage.app(grace=0)
    done: list[str] = []
    gate = Gate()

    async def charge() -> str:
        done.append("charge")
        return "payment"

    @app.task(retry=ONCE)
    async def work() -> str:
        payment = await step("charge", charge)
        await gate.through()
        return payment

    async with app:
        await stage.run(app)
        result = await work.delay()
        await soon(gate.began.get())
        await stage.stop(app)
        gate.open()
        await stage.run(app)

        assert await got(result) == "payment"
    assert done == ["charge"]


async def test_a_step_that_is_done_is_not_repeated_after_a_crash(stage: Stage):
    app = stage.mortal_app(lease=1)
    done: list[str] = []

    async def charge() -> str:
        done.append("charge")
        return "payment"

    @app.task(retry=TWICE)
    async def work() -> str:
        payment = await step("charge", charge)
        done.append("after")
        return payment

    app.crash_at("tasks.shop.default", "before_ack")
    async with app:
        await stage.run(app)

        assert await got(await work.delay()) == "payment"
        await stage.settled("tasks.shop.default")
    assert app.crashes == 1
    assert done.count("charge") == 1


async def test_a_name_that_is_used_again_stands_for_another_step_each_time(stage: Stage):
    app = stage.app()
    done: list[int] = []

    async def double(number: int) -> int:
        done.append(number)
        return number * 2

    @app.task(retry=THRICE)
    async def work(message: Message) -> list[int]:
        doubled = [await step("double", double, number) for number in range(message.attempt + 1)]
        if message.attempt < 3:
            raise ValueError("not yet")
        return doubled

    await stage.run(app)
    unchecked: Any = work

    assert await got(await unchecked.delay()) == [0, 2, 4, 6]
    assert done == [0, 1, 2, 3]


async def test_what_a_step_returns_comes_back_as_it_is_annotated_also_the_first_time(stage: Stage):
    app = stage.app()
    seen: list[Any] = []

    def order() -> Order:
        return Order(id=1)

    async def point() -> Point:
        return Point(1, 2)

    def data() -> bytes:
        return b"\x00\xff"

    def words() -> str:
        return "123"

    def nothing() -> None: ...

    def whatever() -> Any:
        return (1, "b")

    @app.task(retry=TWICE)
    async def work(message: Message) -> None:
        seen.append(
            [
                await step("order", order),
                await step("point", point),
                await step("data", data),
                await step("words", words),
                await step("nothing", nothing),
                await step("whatever", whatever),
            ]
        )
        if message.attempt == 1:
            raise ValueError("again")

    await stage.run(app)
    unchecked: Any = work
    await got(await unchecked.delay())

    assert seen == [[Order(id=1), Point(1, 2), b"\x00\xff", "123", None, [1, "b"]]] * 2


async def test_an_error_of_a_step_is_the_tasks_and_nothing_is_kept_of_it(stage: Stage):
    app = stage.app()
    tries: list[int] = []

    def charge() -> None:
        tries.append(1)
        raise PaymentDown("Itaú", 503)

    @app.task(retry=TWICE)
    async def work() -> str:
        try:
            await step("charge", charge)
        except PaymentDown:
            if len(tries) == 1:
                raise
        return "without"

    await stage.run(app)

    assert await got(await work.delay()) == "without"
    assert len(tries) == 2


async def test_a_step_whose_result_cannot_be_kept_or_is_not_what_it_says_is_a_clear_error(stage: Stage):
    app = stage.app()

    def lock() -> Any:
        return asyncio.Lock()

    def number() -> int:
        return "seven"  # type: ignore[return-value]

    @app.task
    async def work(name: str) -> None:
        await step(name, {"lock": lock, "number": number}[name])

    await stage.run(app)

    with pytest.raises(Unencodable, match="step `lock` returned what cannot be kept"):
        await got(await work.delay("lock"))
    with pytest.raises(InvalidBody, match="step `number` returned is not what `number` says it returns"):
        await got(await work.delay("number"))


async def test_steps_are_forgotten_when_the_task_has_succeeded(stage: Stage):
    app = stage.app()

    @app.task(waits_for=["orders.paid"])
    async def work() -> int:
        await step("first", lambda: 1)
        await wait_for("orders.paid", key="7")
        return await step("first", lambda: 2)

    await stage.run(app)
    result = await work.delay()
    await app.publish("orders.paid", "yes", key="7")

    assert await got(result) == 2
    await stage.settled("orders.paid", "shop.waits")
    assert await app.tasks._store().scan("step:") == {}
    assert await app.tasks._store().scan("wait:") == {}


async def test_steps_are_for_tasks_that_keep_something(stage: Stage):
    app = stage.app()
    refused: asyncio.Queue[str] = asyncio.Queue()

    @app.task(result=False, retry=ONCE)
    async def work() -> None:
        try:
            await step("first", lambda: 1)
        except ConfigurationError as error:
            refused.put_nowait(str(error))

    await stage.run(app)
    await work.delay()

    assert "`work` has result=False" in await soon(refused.get())
    with pytest.raises(ConfigurationError, match="within a task"):
        await step("first", lambda: 1)
    with pytest.raises(ConfigurationError, match="within a task"):
        await wait_for("orders.paid")
