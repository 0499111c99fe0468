"""Sending a task: what `delay` and `apply_async` promise."""

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from carteiro import (
    ConfigurationError,
    InvalidBody,
    Message,
    NoHandler,
    NotConnected,
    Retry,
    Router,
    TaskExpired,
    Unencodable,
    exponential,
)
from tests.e2e.tour.stage import PATIENCE, Stage, soon
from tests.tasks.things import AT_ONCE, Order, Point, got

# -- delay -----------------------------------------------------------------------------------------------------------


async def test_a_task_that_is_sent_runs_on_a_worker_and_its_result_comes_back(stage: Stage):
    app = stage.app()

    @app.task
    async def add(a: int, b: int = 10) -> int:
        return a + b

    await stage.run(app)

    assert await got(await add.delay(1, 2)) == 3
    assert await got(await add.delay(1)) == 11
    assert await got(await add.delay(b=5, a=1)) == 6


async def test_a_task_is_still_the_function_that_it_was(stage: Stage):
    app = stage.app()

    @app.task
    async def add(a: int, b: int) -> int:
        """Adds."""
        return a + b

    @app.task(name="shop.double")
    def double(a: int) -> int:
        return a * 2

    assert await add(1, 2) == 3
    assert double(4) == 8
    assert (add.__name__, add.__doc__, add.name, double.name) == ("add", "Adds.", "add", "shop.double")


async def test_a_hundred_kinds_of_task_need_one_queue(stage: Stage):
    app = stage.app()

    def declare(number: int) -> Any:
        @app.task(name=f"task-{number}")
        async def work() -> int:
            return number

        return work

    tasks = [declare(number) for number in range(100)]
    await stage.run(app)

    results = [await task.delay() for task in tasks]

    assert [await got(result) for result in results] == list(range(100))
    assert {one.topic for one in app.declared()} == {
        "tasks.shop.default", "tasks.shop.default.high", "tasks.shop.default.low",
    }  # fmt: skip


async def test_what_is_sent_while_no_worker_is_up_runs_when_one_starts(stage: Stage):
    app = stage.app()

    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with app:
        result = await add.delay(1, 2)
        assert await result.status() == "pending"

    await stage.run(app)

    assert await got(result) == 3


async def test_arguments_of_all_kinds_arrive_as_they_are_annotated(stage: Stage):
    app = stage.app()
    seen: list[Any] = []

    @app.task
    async def look(
        order: Order, point: Point, at: datetime, amount: Decimal, data: bytes, id: UUID, some: set[int],
        names: tuple[str, ...], whatever: Any, maybe: str | None = None,
    ) -> None:  # fmt: skip
        seen.append((order, point, at, amount, data, id, some, names, whatever, maybe))

    at, id = datetime(2026, 1, 2, 3, 4, tzinfo=UTC), UUID(int=7)
    given = (Order(id=1), Point(1, 2), at, Decimal("1.10"), b"\x00\xff", id, {3}, ("a", "b"), {"k": [1.5, None, "ü"]})
    await stage.run(app)
    await got(await look.delay(*given))

    assert seen == [(*given, None)]


async def test_results_of_all_kinds_come_back_as_they_are_annotated(stage: Stage):
    app = stage.app()

    @app.task
    async def order() -> Order:
        return Order(id=1)

    @app.task
    async def points() -> list[Point]:
        return [Point(1, 2)]

    @app.task
    async def amount() -> Decimal:
        return Decimal("1.10")

    @app.task
    async def data() -> bytes:
        return b"\x00\xff"

    @app.task
    async def packed() -> dict[str, bytes]:
        return {"a": b"\x00\xff"}

    @app.task
    async def at() -> datetime:
        return datetime(2026, 1, 2, tzinfo=UTC)

    @app.task
    async def nothing() -> None: ...

    @app.task
    async def whatever() -> Any:
        return {"a": [1, "b", None]}

    @app.task
    async def maybe() -> bytes | None:
        return None

    await stage.run(app)

    assert await got(await order.delay()) == Order(id=1)
    assert await got(await points.delay()) == [Point(1, 2)]
    assert await got(await amount.delay()) == Decimal("1.10")
    assert await got(await data.delay()) == b"\x00\xff"
    assert await got(await packed.delay()) == {"a": b"\x00\xff"}
    assert await got(await at.delay()) == datetime(2026, 1, 2, tzinfo=UTC)
    assert await got(await nothing.delay()) is None
    assert await got(await whatever.delay()) == {"a": [1, "b", None]}
    assert await got(await maybe.delay()) is None


async def test_wrong_arguments_are_a_type_error_where_the_task_is_sent(stage: Stage):
    app = stage.app()

    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with app:
        wrong: Any = add
        with pytest.raises(TypeError, match=r"add\(\) missing 1 required argument: 'b'"):
            await wrong.delay(1)
        with pytest.raises(TypeError, match=r"missing 2 required arguments: 'a', 'b'"):
            await wrong.delay()
        with pytest.raises(TypeError, match=r"add\(\) takes 2 arguments but 3 were given"):
            await wrong.delay(1, 2, 3)
        with pytest.raises(TypeError, match="unexpected keyword argument 'c'"):
            await wrong.delay(1, c=2)
        with pytest.raises(TypeError, match="multiple values for argument 'a'"):
            await wrong.delay(1, a=2)
        with pytest.raises(TypeError, match="unexpected keyword argument 'c'"):
            wrong.s(c=1)
        with pytest.raises(TypeError, match="missing 1 required argument"):
            wrong.si(1)


async def test_what_no_body_can_hold_is_unencodable_where_the_task_is_sent(stage: Stage):
    app = stage.app()

    @app.task
    async def look(thing: Any) -> None: ...

    async with app:
        with pytest.raises(Unencodable, match=r"task `look`, argument `thing`: cannot encode"):
            await look.delay(threading.Event())


async def test_an_argument_that_does_not_fit_its_annotation_fails_the_task_at_once(stage: Stage):
    app = stage.app()

    @app.task
    async def add(a: int) -> int:
        return a

    wrong: Any = add
    await stage.run(app)

    with pytest.raises(InvalidBody, match=r"Expected `int`, got `str` - at `\$\.a`"):
        await got(await wrong.delay("one"))


async def test_a_task_that_the_workers_do_not_have_fails_with_its_name(stage: Stage):
    app, sender = stage.app(), stage.app()

    @app.task
    async def known() -> None: ...

    @sender.task
    async def unknown() -> None: ...

    await stage.run(app)

    async with sender:
        with pytest.raises(NoHandler, match="no task `unknown`"):
            await got(await unknown.delay())


async def test_a_task_without_a_connection_says_how_to_get_one(stage: Stage):
    app, router = stage.app(), Router()

    @app.task
    async def work() -> None: ...

    @router.task
    async def stray() -> None: ...

    with pytest.raises(NotConnected, match="async with app"):
        await work.delay()
    with pytest.raises(ConfigurationError, match=r"`stray`.*app.include\(router\)"):
        await stray.delay()


async def test_any_client_sends_a_task_as_a_message_with_a_type(stage: Stage):
    app = stage.app()
    ran: asyncio.Queue[int] = asyncio.Queue()

    @app.task
    async def work(number: int) -> None:
        ran.put_nowait(number)

    await stage.run(app)
    await app.publish("tasks.shop.default", {"number": 7}, type="work")

    assert await soon(ran.get()) == 7


# -- apply_async -----------------------------------------------------------------------------------------------------


async def test_its_message_has_the_id_key_and_headers_that_were_given(stage: Stage):
    app = stage.app()

    @app.task
    async def look(message: Message) -> list[str | None]:
        return [message.id, message.key, message.headers["x-tenant"], message.topic]

    await stage.run(app)
    result = await look.apply_async(id="mine", key="Ana", headers={"x-tenant": "br"}, queue="slow", priority="low")

    assert await got(result) == ["mine", "Ana", "br", "tasks.shop.slow.low"]
    assert result.id == "mine"


async def test_a_second_task_with_the_same_id_is_dropped(stage: Stage):
    app = stage.app()
    ran: list[int] = []

    @app.task
    async def work(number: int) -> int:
        ran.append(number)
        return number

    async with app:
        first = await work.apply_async((1,), id="the-same")
        second = await work.apply_async((2,), id="the-same")
        last = await work.delay(3)
    await stage.run(app)

    assert await got(last) == 3
    assert await got(first) == await got(second) == 1
    assert sorted(ran) == [1, 3]


async def test_a_task_with_a_countdown_or_an_eta_runs_after_one_that_was_sent_later(stage: Stage):
    app = stage.app()
    ran: list[str] = []

    @app.task
    async def work(name: str) -> None:
        ran.append(name)

    async with app:
        eta = datetime.now(UTC) + timedelta(seconds=1.2)
        late = [
            await work.apply_async(("countdown",), countdown=1),
            await work.apply_async(("eta",), eta=eta),
        ]
        now = await work.delay("now")
    await stage.run(app)
    for result in (now, *late):
        await got(result)

    assert ran[0] == "now"
    assert sorted(ran[1:]) == ["countdown", "eta"]


async def test_a_countdown_that_is_longer_than_any_lease_is_kept_to_once(stage: Stage):
    clock = stage.hold_time()
    app = stage.app(lease=300)
    ran: list[float] = []

    @app.task
    async def work() -> None:
        ran.append(clock.time())

    await stage.run(app)
    sent = clock.time()
    result = await work.apply_async(countdown="3h")
    await soon(stage.pass_until(result.get(), step=60))

    assert len(ran) == 1
    assert 3 * 3600 <= ran[0] - sent < 3.1 * 3600


async def test_a_task_that_was_not_begun_before_it_expired_is_not_run(stage: Stage):
    app = stage.app()
    ran: list[str] = []

    @app.task
    async def work(name: str) -> None:
        ran.append(name)

    async with app:
        expired = await work.apply_async(("late",), expires=1e-6)
        result = await work.apply_async(("in time",), expires="1h")
    await stage.run(app)

    await got(result)
    with pytest.raises(TaskExpired, match="`work` had not begun when its `expires` was over"):
        await got(expired)
    assert await expired.status() == "expired"
    assert ran == ["in time"]


async def test_a_task_may_say_itself_when_its_calls_expire(stage: Stage):
    app = stage.app()

    @app.task(expires=timedelta(microseconds=1))
    async def work() -> None: ...

    async with app:
        expired = await work.delay()
        begun = await work.apply_async(expires="1h")
    await stage.run(app)

    await got(begun)
    with pytest.raises(TaskExpired):
        await got(expired)


async def test_one_call_can_have_a_retry_policy_of_its_own(stage: Stage):
    app = stage.app()
    attempts: dict[str, int] = {}

    @app.task(retry=Retry(attempts=2, backoff=AT_ONCE))
    async def work(name: str) -> None:
        attempts[name] = attempts.get(name, 0) + 1
        raise ValueError(name)

    await stage.run(app)
    results = [
        await work.delay("own"),
        await work.apply_async(("policy",), retry=Retry(attempts=4, backoff=AT_ONCE)),
        await work.apply_async(("number",), retry=1),
    ]

    for result in results:
        with pytest.raises(ValueError, match=r"own|policy|number"):
            await got(result)
    assert attempts == {"own": 2, "policy": 4, "number": 1}


async def test_options_that_make_no_sense_are_refused_with_the_way_out(stage: Stage):
    app = stage.app()

    @app.task
    async def work() -> None: ...

    unchecked: Any = work
    async with app:
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"countdown": 1, "eta": datetime.now(UTC)}, "give one of them"),
            ({"eta": datetime.now()}, "with a time zone"),  # noqa: DTZ005
            ({"priority": "urgent"}, "high, normal or low"),
            ({"queue": "a.b"}, "one word, without dots"),
            ({"retry": Retry(backoff=lambda failures: 1.0)}, r"exponential\(…\) or constant\(…\)"),
            ({"retry": "often"}, "a number of attempts"),
            ({"retry": 0}, "at least 1"),
            ({"unique": 7}, "True, a key, or Unique"),
            ({"headers": {"run": "mine"}}, "`run` is carteiro's own"),
        ]
        for options, words in wrong:
            with pytest.raises(ConfigurationError, match=words):
                await unchecked.apply_async(**options)


# -- without an event loop -------------------------------------------------------------------------------------------


async def test_plain_threads_send_tasks_and_get_their_results(stage: Stage):
    if stage.url.startswith("memory"):
        pytest.skip("what is in memory belongs to one event loop, and a thread of its own has another")
    worker, app = stage.app(), stage.app()

    @worker.task
    async def add(a: int, b: int) -> int:
        return a + b

    task = app.task(add.function)

    def use() -> list[Any]:
        first = task.delay_sync(1, 2)
        second = task.apply_sync((3, 4), priority="high", queue="slow", headers={"x-tenant": "br"})
        third = (task.s(1, 1) | task.s(1)).delay_sync()
        return [one.get_sync(timeout=PATIENCE) for one in (first, second, third)] + [first.status_sync()]

    await stage.run(worker)

    assert await soon(asyncio.to_thread(use)) == [3, 7, 3, "succeeded"]
    await asyncio.to_thread(app._sync._close)


async def test_threads_beside_an_app_that_is_open_use_its_connection(stage: Stage):
    app = stage.app()

    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    @app.task
    def outer() -> int:
        return add.delay_sync(1, 2).get_sync(timeout=PATIENCE)

    await stage.run(app)

    assert await got(await outer.delay()) == 3
    assert await asyncio.to_thread(lambda: add.delay_sync(2, 2).get_sync(timeout=PATIENCE)) == 4


def test_a_script_without_a_loop_sends_and_cancels(broker_url: str, tmp_path: Any):
    from carteiro import Carteiro

    app = Carteiro("shop", broker_url, store=f"sqlite:///{tmp_path}/store.db")

    @app.task
    async def work() -> None: ...

    result = work.delay_sync()

    assert result.status_sync() == "pending"
    assert result.cancel_sync() is True
    assert result.cancel_sync() is False
    assert result.status_sync() == "cancelled"
    assert result.progress_sync() is None
    app._sync._close()


async def test_a_retry_policy_of_a_call_keeps_its_backoff(stage: Stage):
    app = stage.app()

    @app.task
    async def work(message: Message) -> str:
        return message.headers["retry"]

    await stage.run(app)
    policy = Retry(attempts=3, backoff=exponential(2, cap=60, jitter=None), max_age="1h")

    sent = await got(await work.apply_async(retry=policy))

    assert sent == '{"attempts":3,"base":2.0,"factor":2.0,"cap":60.0,"max_age":3600.0}'
