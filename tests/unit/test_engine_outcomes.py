"""How attempts end when something about the ending itself is wrong: they count, and the reason is the right one."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence

import pytest

from carteiro import Batch, Carteiro, Idempotency, Message, Retry, RetryLater, constant
from carteiro.backends.memory.consumer import MemoryConsumer
from carteiro.message import DEAD_REASON, EXPIRES_AT, DeadLetter, Delivery, Outcome
from carteiro.testing import TestApp


class Mute(Exception):
    """An error that cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def life(letter: DeadLetter) -> tuple[str, list[int]]:
    """Why it is dead, and which of its attempts failed."""
    return letter.reason, [failure.attempt for failure in letter.history]


# -- failing while failing ---------------------------------------------------------------------------------------------


def bottomless(failures: int) -> float:
    raise IndexError("no backoff for this")


@pytest.mark.parametrize(
    ("retry", "error", "reason"),
    [
        pytest.param(Retry(attempts=3, backoff=bottomless), ValueError("broken"), "ValueError: broken", id="backoff"),
        pytest.param(
            Retry(attempts=3, backoff=lambda failures: -1.0), ValueError("broken"), "ValueError: broken", id="negative"
        ),
        pytest.param(
            Retry(attempts=3, backoff=constant(1)),
            RetryLater("not ready", delay="soon"),
            "RetryLater: not ready",
            id="delay that is none",
        ),
        pytest.param(
            Retry(attempts=3, backoff=constant(1)),
            Mute(),
            "Mute: (its text cannot be had: RuntimeError)",
            id="error without a text",
        ),
    ],
)
async def test_an_error_or_a_backoff_that_fails_itself_still_counts_and_ends(
    retry: Retry, error: Exception, reason: str
):
    app = Carteiro("shop")

    @app.subscriber("orders", retry=retry)
    async def fail(order: int) -> None:
        raise error

    async with TestApp(app) as t:
        await t.publish("orders", 1)
        await t.advance(60)
        assert [life(letter) for letter in t.dead("orders")] == [(reason, [1, 2, 3])]


async def test_a_retry_later_takes_its_delay_as_text():
    app = Carteiro("shop")
    attempts: list[tuple[int, float]] = []

    @app.subscriber("orders")
    async def wait(order: int, message: Message) -> None:
        attempts.append((message.attempt, app.clock.time() - message.published))
        if message.attempt == 1:
            raise RetryLater(delay="5m")

    async with TestApp(app) as t:
        await t.publish("orders", 1)
        await t.advance(minutes=6)

    assert attempts == [(1, 0), (2, 300)]


async def test_a_handler_that_is_cancelled_from_within_is_tried_again():
    app = Carteiro("shop")

    @app.subscriber("orders", retry=Retry(attempts=3, backoff=constant(1)))
    async def await_what_is_cancelled(order: int) -> None:
        part = asyncio.ensure_future(asyncio.Event().wait())
        part.cancel()
        await part

    async with TestApp(app) as t:
        await t.publish("orders", 1)
        await t.advance(60)
        assert [life(letter) for letter in t.dead("orders")] == [
            ("HandlerFailed: it was cancelled from within", [1, 2, 3])
        ]


# -- what is dead before it starts -------------------------------------------------------------------------------------


def one_by_one(app: Carteiro, handled: list[int]) -> None:
    @app.subscriber("orders")
    async def handle(body: dict[str, int]) -> None:
        handled.append(body["id"])


def once_each(app: Carteiro, handled: list[int]) -> None:
    @app.subscriber("orders", idempotency=Idempotency(key="id"))
    async def handle(body: dict[str, int]) -> None:
        handled.append(body["id"])


def together(app: Carteiro, handled: list[int]) -> None:
    @app.subscriber("orders", batch=Batch(size=3))
    async def handle(bodies: list[dict[str, int]]) -> None:
        handled.extend(body["id"] for body in bodies)


@pytest.mark.parametrize("subscribe", [one_by_one, once_each, together])
async def test_a_message_that_expires_at_no_time_is_dead_at_once_and_alone(
    subscribe: Callable[[Carteiro, list[int]], None],
):
    app = Carteiro("shop")
    handled: list[int] = []
    subscribe(app, handled)

    async with TestApp(app) as t:
        await t.publish("orders", {"id": 1})
        await t.publish("orders", {"id": 2}, headers={EXPIRES_AT: "Wed, 21 Oct"})
        await t.publish("orders", {"id": 3})
        await t.idle()
        assert [life(letter) for letter in t.dead("orders")] == [
            ("InvalidBody: the header expires-at: Wed, 21 Oct is not a number of seconds", [1])
        ]

    assert handled == [1, 3]


async def test_where_a_deploy_lowers_the_attempts_the_reason_is_the_last_failure():
    broker = f"memory://{uuid.uuid4().hex}"
    before, after = Carteiro("shop", broker), Carteiro("shop", broker)
    reason: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @before.subscriber("orders", retry=Retry(attempts=1000, backoff=constant(0)))
    async def fail_often(order: int, message: Message) -> None:
        if message.attempt == 3:
            before.stop()
        raise ValueError("the stock is down")

    @after.subscriber("orders", retry=Retry(attempts=2))
    async def never(order: int) -> None:
        raise AssertionError("its attempts are used up")

    @after.subscriber("dlq_orders")
    async def note(message: Message) -> None:
        reason.set_result(message.headers[DEAD_REASON])

    async with before, after:
        await before.publish("orders", 1)
        await before.run()
        running = asyncio.create_task(after.run())
        assert await reason == "ValueError: the stock is down"
        after.stop()
        await running


async def test_a_message_that_kills_its_worker_does_not_take_that_of_another_subscription_along():
    app = Carteiro("shop", retry=Retry(attempts=4))
    done: list[str] = []

    @app.subscriber("poison")
    async def kill(body: int) -> None: ...

    @app.subscriber("films")
    async def render(film: str) -> None:
        await app.clock.sleep(5)
        done.append(film)

    async with TestApp(app, patience=0) as t:
        t.crash_at(kill, "before_ack", times=4)
        await t.publish("films", "Limite")
        await t.publish("poison", 1)
        await t.advance(minutes=10)
        assert t.crashes == 4
        assert [(letter.topic, letter.reason) for letter in t.dead()] == [
            ("poison", "WorkerLost: the worker died or lost its lease 4 times while it held this message")
        ]

    assert done == ["Limite"]


# -- what the broker does not take -------------------------------------------------------------------------------------


async def test_an_outcome_that_the_broker_refuses_is_a_failed_attempt_and_its_neighbours_are_settled(
    monkeypatch: pytest.MonkeyPatch,
):
    settle = MemoryConsumer.settle

    async def picky(self: MemoryConsumer, outcomes: Sequence[Outcome]) -> Sequence[Delivery]:
        if any(emit.body == b"2" for outcome in outcomes for emit in outcome.emits):
            raise ValueError("no room for a 2")
        return await settle(self, outcomes)

    monkeypatch.setattr(MemoryConsumer, "settle", picky)
    app = Carteiro("shop")
    attempts: list[tuple[int, int]] = []

    @app.subscriber("orders", retry=Retry(attempts=2))
    @app.publisher("invoices")
    async def invoice(order: int, message: Message) -> int:
        attempts.append((order, message.attempt))
        return order

    async with TestApp(app) as t:
        await t.publish_many("orders", [1, 2, 3])
        await t.advance(60)
        assert t.published("invoices") == [1, 3]
        assert [(letter.message.body, letter.reason) for letter in t.dead("orders")] == [
            (b"2", "ValueError: no room for a 2")
        ]

    assert attempts == [(1, 1), (2, 1), (3, 1), (2, 2)]


async def test_what_is_handed_back_does_not_count_as_handled():
    app = Carteiro("shop")

    @app.subscriber("orders", idempotency=Idempotency(key="id"))
    async def handle(body: dict[str, int]) -> None:
        await app.clock.sleep(20)  # the second one steps back, again and again

    async with TestApp(app, patience=0) as t:
        await t.publish_many("orders", [{"id": 1}, {"id": 1}])
        await t.advance(30)
        assert app.worker is not None
        assert app.worker.handled == 2
