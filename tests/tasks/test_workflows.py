"""Calls that are put together: chains, groups, chords, and what becomes of them when something fails."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from carteiro import (
    Carteiro,
    ConfigurationError,
    HandlerTimeout,
    InvalidBody,
    Message,
    Retry,
    RunResult,
    TaskCancelled,
    TaskExpired,
    TaskFailed,
    TaskResult,
    chain,
    chord,
    chunks,
    group,
)
from tests.e2e.tour.stage import Stage, soon
from tests.tasks.things import AT_ONCE, ONCE, TWICE, Gate, PaymentDown, got


class Shop:
    """An app with a few tasks to be put together, and what they did."""

    def __init__(self, app: Carteiro) -> None:
        self.app = app
        self.ran: list[Any] = []
        self.gate = Gate()
        self.told: asyncio.Queue[Any] = asyncio.Queue()
        shop = self

        @app.task
        async def add(a: int, b: int) -> int:
            shop.ran.append(("add", a, b))
            return a + b

        @app.task
        async def total(numbers: list[int]) -> int:
            return sum(numbers)

        @app.task
        def double(number: int) -> int:
            return number * 2

        @app.task
        async def same(thing: Any) -> Any:
            return thing

        @app.task(retry=TWICE)
        async def fails(number: int) -> int:
            shop.ran.append(("fails", number))
            raise ValueError(f"no {number}")

        @app.task
        async def stays(number: int) -> int:
            await shop.gate.through(number)
            return number

        @app.task
        async def tell(thing: Any, name: str = "told") -> None:
            shop.told.put_nowait((name, thing))

        @app.task
        async def constant() -> str:
            return "constant"

        self.add, self.total, self.double, self.same = add, total, double, same
        self.fails, self.stays, self.tell, self.constant = fails, stays, tell, constant


@pytest.fixture
async def shop(stage: Stage) -> Shop:
    shop = Shop(stage.app())
    await stage.run(shop.app)
    return shop


# -- chains, groups and chords ---------------------------------------------------------------------------------------


async def test_a_chain_hands_each_result_to_the_next_one_as_its_first_argument(shop: Shop):
    result = await chain(shop.add.s(1, 2), shop.add.s(3), shop.double.s(), shop.add.s(b=4)).delay()

    assert await got(result) == 16
    assert isinstance(result, RunResult)
    assert await result.status() == "succeeded"


async def test_a_group_is_the_list_of_its_members_results_in_their_order(shop: Shop):
    assert await got(await group(shop.add.s(number, 1) for number in range(10)).delay()) == list(range(1, 11))
    assert await got(await group(shop.add.s(1, 1), shop.double.s(4)).delay()) == [2, 8]


async def test_a_group_of_one_is_a_list_of_one_and_a_group_of_none_an_empty_list(shop: Shop):
    assert await got(await group(shop.add.s(1, 1)).delay()) == [2]
    assert await got(await (group([shop.add.s(1, 1)]) | shop.total.s()).delay()) == 2
    assert await got(await (group([]) | shop.total.s()).delay()) == 0
    assert await got(await (shop.constant.s() | group([]) | shop.same.s()).delay()) == []
    assert await got(await group(group([]), shop.add.s(1, 1)).delay()) == [[], 2]
    with pytest.raises(ConfigurationError, match="holds no task"):
        await group([]).delay()


async def test_a_chord_hands_the_list_to_its_body(shop: Shop):
    assert await got(await chord((shop.add.s(n, n) for n in range(20)), shop.total.s()).delay()) == 380
    assert await got(await chord([], shop.total.s()).delay()) == 0


async def test_the_bar_puts_together_what_is_on_both_sides(shop: Shop):
    canvas = shop.add.s(1, 1) | group(shop.add.s(1), shop.add.s(2)) | shop.total.s() | shop.double.s()

    assert await got(await canvas.delay()) == 14


async def test_groups_follow_groups_and_each_member_gets_the_whole_list(shop: Shop):
    canvas = group(shop.add.s(1, 1), shop.add.s(2, 2)) | group(shop.total.s(), shop.same.s()) | shop.same.s()

    assert await got(await canvas.delay()) == [6, [2, 4]]


async def test_canvases_nest_as_deep_as_one_likes(shop: Shop):
    inner = group(shop.double.s(), shop.double.s() | shop.double.s())
    canvas = group(chain(shop.add.s(1, 1), inner), group(group(shop.add.s(2, 2)))) | shop.same.s()

    assert await got(await canvas.delay()) == [[4, 8], [[4]]]


async def test_map_makes_one_call_for_each_item_and_chunks_many_in_one_message(shop: Shop):
    assert await got(await shop.double.map(range(5)).delay()) == [0, 2, 4, 6, 8]
    assert await got(await shop.add.map([(1, 2), (3, 4)]).delay()) == [3, 7]
    assert await got(await shop.add.chunks(((n, n) for n in range(10)), 4).delay()) == [
        [0, 2, 4, 6], [8, 10, 12, 14], [16, 18],
    ]  # fmt: skip
    assert await got(await (chunks(shop.double, range(3), 2) | shop.same.s()).delay()) == [[0, 2], [4]]
    assert await got(await (shop.constant.s() | shop.same.chunks([], 2)).delay()) == []


async def test_what_a_canvas_is_started_with_goes_to_its_first_tasks(shop: Shop):
    assert await got(await (shop.add.s(1) | shop.double.s()).delay(2)) == 6
    assert await got(await group(shop.add.s(1), shop.add.s(2)).delay(10)) == [11, 12]
    assert await got(await shop.add.s(1).delay(2)) == 3
    assert await got(await shop.add.s(b=1).apply_async((5,))) == 6
    for canvas in (shop.constant.si() | shop.double.s(), shop.constant.si()):
        with pytest.raises(ConfigurationError, match="nothing takes the arguments"):
            await canvas.delay(2)


async def test_an_immutable_signature_waits_and_takes_nothing(shop: Shop):
    assert await got(await (shop.add.s(1, 1) | shop.constant.si() | shop.same.s()).delay()) == "constant"
    assert await got(await (shop.add.s(1, 1) | shop.add.si(5, 5)).delay()) == 10


async def test_a_canvas_is_a_value_that_is_used_as_often_as_one_likes(shop: Shop):
    call = shop.add.s(1)
    later = call.set(queue="slow", countdown=0.01)
    canvas = call | shop.double.s()

    assert [await got(await canvas.delay(number)) for number in range(3)] == [2, 4, 6]
    assert await got(await later.delay(5)) == 6
    assert call.options.queue is None
    assert (await canvas.delay(1)).id != (await canvas.delay(1)).id


async def test_a_lone_signature_is_a_task_like_any_other(shop: Shop):
    result = await shop.add.s(1, 2).delay()

    assert type(result) is TaskResult
    assert result.task == "add"
    assert await got(result) == 3


async def test_each_call_of_a_canvas_goes_where_it_says_and_the_others_where_the_canvas_says(stage: Stage, shop: Shop):
    @shop.app.task
    async def where(message: Message) -> list[Any]:
        return [message.topic, message.key, message.headers.get("x-tenant")]

    await stage.stop(shop.app)
    await stage.run(shop.app)
    own = where.si().set(queue="slow", priority="high", key="Ana", headers={"x-tenant": "br"})

    result = await group(own, where.si()).apply_async(queue="other", priority="low", headers={"x-tenant": "pt"})
    assert await got(result) == [
        ["tasks.shop.slow.high", "Ana", "br"],
        ["tasks.shop.other.low", None, "pt"],
    ]
    alone = await own.apply_async(queue="other", headers={"x-tenant": "pt"})
    assert await got(alone) == ["tasks.shop.slow.high", "Ana", "br"]


async def test_a_countdown_within_a_chain_begins_when_its_turn_comes(shop: Shop):
    canvas = shop.add.s(1, 1) | shop.double.s().set(countdown=0.2)

    assert await got(await canvas.delay()) == 4


async def test_a_chord_of_two_thousand_is_joined_once(shop: Shop):
    result = await chord((shop.double.s(number) for number in range(2_000)), shop.total.s()).delay()

    assert await result.get(timeout=120) == 2 * sum(range(2_000))


async def test_a_result_larger_than_a_message_goes_on_by_the_store(shop: Shop):
    text = "x" * 100_000

    assert await got(await (shop.same.s(text) | shop.same.s() | shop.same.s()).delay()) == text
    assert await got(await (group(shop.same.s(text), shop.same.s("y")) | shop.same.s()).delay()) == [text, "y"]


async def test_steps_of_a_run_have_one_correlation_id(shop: Shop, stage: Stage):
    seen: list[str] = []

    @shop.app.middleware
    async def look(message: Message, call_next: Any) -> Any:
        seen.append(message.correlation_id)
        return await call_next(message)

    await stage.stop(shop.app)
    await stage.run(shop.app)
    result = await (shop.add.s(1, 1) | group(shop.double.s(), shop.double.s()) | shop.total.s()).delay()
    await got(result)

    assert set(seen) == {result.id}


# -- callbacks -------------------------------------------------------------------------------------------------------


async def test_a_link_is_started_with_the_result_and_has_no_part_in_it(shop: Shop):
    linked = shop.add.s(1, 1).link(shop.tell.s("link"), shop.fails.s())

    assert await got(await (linked | shop.double.s()).delay()) == 4
    assert await soon(shop.told.get()) == ("link", 2)

    assert await got(await group(shop.add.s(1, 1)).link(shop.tell.s("group")).delay()) == [2]
    assert await soon(shop.told.get()) == ("group", [2])
    assert await got(await chain(shop.add.s(1, 1), shop.double.s()).link(shop.tell.s("chain")).delay()) == 4
    assert await soon(shop.told.get()) == ("chain", 4)


async def test_an_error_callback_gets_the_failure_once(shop: Shop, stage: Stage):
    canvas = group(shop.fails.s(1), shop.fails.s(2), shop.add.s(1, 1)) | shop.total.s()
    result = await canvas.link_error(shop.tell.s("error")).delay()
    with pytest.raises(ValueError, match=r"no [12]"):
        await got(result)
    name, failure = await soon(shop.told.get())
    await stage.settled("tasks.shop.default")

    assert name == "error"
    assert failure["task"] == "fails"
    assert failure["id"].startswith(result.id)
    assert failure["type"] == "builtins:ValueError"
    assert failure["error"].startswith("ValueError: no ")
    assert "raise ValueError" in failure["traceback"]
    assert shop.told.empty()


async def test_an_error_callback_of_one_task_hears_of_that_one_only(shop: Shop, stage: Stage):
    careful = shop.fails.s(1).link_error(shop.tell.s("mine"))
    with pytest.raises(ValueError, match="no 1"):
        await got(await careful.delay())
    assert (await soon(shop.told.get()))[0] == "mine"

    quiet = shop.add.s(1, 1).link_error(shop.tell.s("not mine")) | shop.fails.s()
    with pytest.raises(ValueError, match="no 2"):
        await got(await quiet.delay())
    await stage.settled("tasks.shop.default")
    assert shop.told.empty()


async def test_a_canvas_that_succeeds_calls_no_error_callback(shop: Shop, stage: Stage):
    canvas = chain(shop.add.s(1, 1), shop.double.s()).link_error(shop.tell.s("error"))

    assert await got(await canvas.delay()) == 4
    await stage.settled("tasks.shop.default")
    assert shop.told.empty()


# -- when something fails --------------------------------------------------------------------------------------------


async def test_a_member_that_fails_for_good_fails_the_run_with_its_exception(shop: Shop):
    result = await chord([shop.add.s(1, 1), shop.fails.s(7)], shop.total.s()).delay()

    with pytest.raises(ValueError, match="no 7") as raised:
        await got(result)
    assert "raise ValueError" in str(raised.value.__cause__)
    assert await result.status() == "failed"
    assert shop.ran.count(("fails", 7)) == 2  # it had its retry


async def test_a_chain_ends_where_a_task_fails(shop: Shop, stage: Stage):
    result = await (shop.add.s(1, 1) | shop.fails.s() | shop.add.s(5)).delay()

    with pytest.raises(ValueError, match="no 2"):
        await got(result)
    await stage.settled("tasks.shop.default")
    assert [one for one in shop.ran if one[0] == "add"] == [("add", 1, 1)]


async def test_a_member_that_fails_and_then_succeeds_is_no_failure(shop: Shop, stage: Stage):
    @shop.app.task(retry=TWICE)
    async def wavers(message: Message) -> int:
        if message.attempt == 1:
            raise ValueError("not yet")
        return 1

    await stage.stop(shop.app)
    await stage.run(shop.app)

    assert await got(await chord([wavers.si() for _ in range(5)], shop.total.s()).delay()) == 5


async def test_a_failure_stops_the_rest_also_what_runs(shop: Shop, stage: Stage):
    canvas = group([*[shop.stays.s(number) for number in range(3)], shop.same.s(1) | shop.fails.s()])
    result = await canvas.delay()

    with pytest.raises(ValueError, match="no 1"):
        await got(result)
    cancelled = [await soon(shop.gate.cancelled.get()) for _ in range(shop.gate.began.qsize())]
    await stage.settled("tasks.shop.default")
    assert sorted(cancelled) == sorted(shop.gate.began.get_nowait() for _ in cancelled)


async def test_a_group_that_collects_has_the_errors_in_their_place(shop: Shop):
    members = [shop.add.s(1, 1), shop.fails.s(2), shop.add.s(3, 3) | shop.fails.s(), shop.double.s(4)]
    result = await group(members, errors="collect").delay()

    first, second, third, fourth = await got(result)
    assert (first, fourth) == (2, 8)
    assert (type(second), str(second)) == (ValueError, "no 2")
    assert (type(third), str(third)) == (ValueError, "no 6")
    assert "raise ValueError" in str(second.__cause__)
    assert await result.status() == "succeeded"


async def test_what_comes_after_a_group_that_collects_gets_the_failures_as_they_travel(shop: Shop):
    canvas = group(shop.add.s(1, 1), shop.fails.s(2), errors="collect") | shop.same.s()

    two, failure = await got(await canvas.delay())
    assert two == 2
    assert isinstance(failure, ValueError)


async def test_a_failure_after_a_group_that_collects_fails_the_run(shop: Shop):
    canvas = group(shop.fails.s(1), errors="collect") | shop.fails.si(9)

    with pytest.raises(ValueError, match="no 9"):
        await got(await canvas.delay())


async def test_a_member_that_gets_the_wrong_thing_fails_the_run(shop: Shop):
    with pytest.raises(InvalidBody, match=r"Expected `int`, got `str`"):
        await got(await (shop.constant.s() | shop.double.s()).delay())
    with pytest.raises(InvalidBody, match=r"double\(\) takes 1 argument but 2 were given"):
        await got(await (shop.constant.s() | shop.double.s(1)).delay())


async def test_a_member_that_expires_fails_the_run(shop: Shop):
    canvas = shop.add.s(1, 1) | shop.double.s().set(expires=1e-6)

    with pytest.raises(TaskExpired, match="`double` had not begun"):
        await got(await canvas.delay())


async def test_a_member_whose_time_is_over_fails_the_run(shop: Shop, stage: Stage):
    @shop.app.task(timeout=0.05, retry=ONCE)
    async def slow() -> None:
        await asyncio.Event().wait()

    await stage.stop(shop.app)
    await stage.run(shop.app)

    with pytest.raises(HandlerTimeout):
        await got(await group(slow.si(), shop.add.s(1, 1)).delay())


async def test_a_task_of_another_app_is_refused_before_anything_is_sent(shop: Shop, stage: Stage):
    other = stage.app("other")

    @other.task
    async def foreign() -> None: ...

    with pytest.raises(ConfigurationError, match="has no task `foreign`"):
        await (shop.add.s(1, 1) | foreign.si()).delay()


# -- cancelling ------------------------------------------------------------------------------------------------------


async def test_cancelling_a_run_cancels_what_is_left_of_it(shop: Shop, stage: Stage):
    result = await (group(shop.stays.s(1), shop.stays.s(2)) | shop.total.s()).delay()
    for _ in range(2):
        await soon(shop.gate.began.get())
    assert await result.status() in ("pending", "running")
    assert await result.cancel() is True

    assert sorted([await soon(shop.gate.cancelled.get()) for _ in range(2)]) == [1, 2]
    with pytest.raises(TaskCancelled):
        await got(result)
    await stage.settled("tasks.shop.default")
    assert await result.status() == "cancelled"
    assert await result.cancel() is False


async def test_a_run_that_is_cancelled_before_a_worker_is_up_is_never_begun(stage: Stage):
    app = stage.app()
    shop = Shop(app)
    async with app:
        result = await (group(shop.add.s(1, 1), shop.add.s(2, 2)) | shop.total.s()).delay()
        assert await result.cancel() is True
        last = await shop.double.delay(1)
        await stage.run(app)
        await got(last)
        await stage.settled("tasks.shop.default")

        assert shop.ran == []
        assert await result.status() == "cancelled"


async def test_a_failure_after_the_cancel_does_not_undo_it(shop: Shop, stage: Stage):
    @shop.app.task(retry=ONCE)
    async def fails_when_cancelled(message: Message) -> None:
        assert await shop.app.tasks.run(message.headers["run"]).cancel() is True
        raise PaymentDown("Itaú", 503)

    await stage.stop(shop.app)
    await stage.run(shop.app)
    unchecked: Any = fails_when_cancelled
    result = await group(unchecked.si(), shop.add.s(1, 1)).link_error(shop.tell.s("error")).delay()

    with pytest.raises(TaskCancelled):
        await got(result)
    await stage.settled("tasks.shop.default")
    assert await result.status() == "cancelled"
    assert shop.told.empty()


async def test_one_task_of_a_run_is_not_cancelled_alone(shop: Shop):
    result = await (group(shop.stays.s(1), shop.stays.s(2)) | shop.total.s()).delay()
    number = await soon(shop.gate.began.get())
    node = shop.app.tasks.result(f"{result.id}.{number}")

    with pytest.raises(ConfigurationError, match=rf"part of a run.*app.tasks.run\('{result.id}'\).cancel\(\)"):
        await node.cancel()
    shop.gate.open()
    assert await got(result) == 3


# -- what is no canvas -----------------------------------------------------------------------------------------------


def test_what_cannot_be_put_together_is_refused_with_the_way_out():
    app = Carteiro("shop", "memory://")

    @app.task
    async def work(number: int) -> int:
        return number

    unchecked: Any = work
    wrong: list[tuple[Callable[[], Any], str]] = [
        (chain, "of nothing"),
        (lambda: group(unchecked), r"did you mean `work.s\(\)`"),
        (lambda: chain(work.s(1), unchecked), r"did you mean `work.s\(\)`"),
        (lambda: group([work.s(1)], errors="ignore"), "`stop` or `collect`"),  # type: ignore[arg-type]
        (lambda: work.chunks([1], 0), "at least one call"),
        (lambda: work.s(1).set(colour="red"), "no option `colour`"),  # type: ignore[call-arg]
        (lambda: work.s(1).set(headers={"run": "x"}), "`run` is carteiro's own"),
    ]
    for call, words in wrong:
        with pytest.raises(ConfigurationError, match=words):
            call()
    with pytest.raises(TypeError):
        work.s(1) | 7  # type: ignore[operator]


async def test_errors_of_a_run_come_back_as_task_failed_where_their_type_is_not_known(stage: Stage):
    class Hidden(Exception): ...

    app = stage.app()

    @app.task(retry=Retry(attempts=1, backoff=AT_ONCE))
    async def fails() -> None:
        raise Hidden("where?")

    await stage.run(app)

    with pytest.raises(TaskFailed, match=r"Hidden: where\?"):
        await got(await group(fails.si()).delay())
    (error,) = await got(await group(fails.si(), errors="collect").delay())
    assert type(error) is TaskFailed
