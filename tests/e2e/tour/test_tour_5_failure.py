"""Part 5: retries, rejection, dead letters, and doing once what is asked for twice."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from types import ModuleType
from typing import Annotated, Any

import pytest

from carteiro import (
    Carteiro,
    Emit,
    Idempotency,
    Message,
    Outgoing,
    Reject,
    RequestFailed,
    Retry,
    RetryLater,
    Topic,
    constant,
    exponential,
)
from tests.e2e.tour.stage import Stage, follow, soon

# -- the tour's own file ---------------------------------------------------------------------------------------------


async def test_the_tours_checkout_retries_rejects_and_gives_up(stage: Stage, part: Callable[[str], ModuleType]):
    stage.hold_time()
    failure = part("failure")
    app = failure.app
    app.clock = stage.clock
    handled = follow(app)
    await stage.run(app)

    await app.publish("checkout", {"id": 1, "closed": True})
    await handled.next()
    await app.publish("checkout", {"id": 2, "payment_is_down": True})
    ended = [await soon(stage.pass_until(handled.next())) for _ in range(5)]
    await stage.settled("checkout")

    closed, down = await stage.dead("dlq_checkout")
    assert closed.reason == "Reject: the order is closed"
    assert [failure.attempt for failure in closed.history] == [1]
    assert down.reason == "PaymentDown: no answer from the bank"
    assert [one.message.attempt for one in ended] == [1, 2, 3, 4, 5]
    assert [failure.attempt for failure in down.history] == [1, 2, 3, 4, 5]
    assert "raise PaymentDown" in down.history[0].traceback
    assert "carteiro/engine" not in down.history[0].traceback
    times = [failure.at for failure in down.history]
    assert times == sorted(times)
    assert down.at >= times[-1]


async def test_the_tours_explicit_retry_has_its_own_delay(stage: Stage, part: Callable[[str], ModuleType]):
    clock = stage.hold_time()
    failure = part("failure")
    app = failure.app
    app.clock = stage.clock
    handled = follow(app)
    await stage.run(app)
    start = clock.time()

    await app.publish("checkout", {"id": 3, "ready": False})
    for attempt in range(1, 6):
        ended = await soon(stage.pass_until(handled.next()))
        assert ended.message.attempt == attempt
        assert clock.time() >= start + 10 * (attempt - 1)
    await stage.settled("checkout")

    (letter,) = await stage.dead("dlq_checkout")
    assert letter.reason == "RetryLater: the handler asked for a retry"


async def test_the_tours_charge_does_nothing_for_a_second_delivery_of_the_same_order(
    stage: Stage, part: Callable[[str], ModuleType]
):
    failure = part("failure")
    handled = follow(failure.app)
    await stage.run(failure.app)

    for order in (1, 1, 2):
        await failure.app.publish("payments", {"order_id": order, "amount": "9.90"})
    await stage.settled("payments")

    assert [b'"order_id":1' in one.message.body for one in await handled.many(2)].count(True) == 1
    assert handled.silent
    assert await stage.dead() == []


# -- retries ---------------------------------------------------------------------------------------------------------


class Down(Exception):
    pass


class Wrong(Down):
    pass


def failing(app: Carteiro, retry: Retry | None, *errors: BaseException) -> None:
    """`work` raises these, one an attempt, and then succeeds."""
    left = list(errors)

    @app.subscriber("work", retry=retry)
    async def work(message: Message) -> str:
        if left:
            raise left.pop(0)
        return f"done at attempt {message.attempt}"


async def test_delays_grow_exponentially_up_to_their_cap(stage: Stage):
    clock = stage.hold_time()
    app = stage.app()
    failing(app, Retry(attempts=6, backoff=exponential(10, cap=60, jitter=None)), *[Down()] * 5)
    handled = follow(app)
    await stage.run(app)

    await app.publish("work", 1)
    times = []
    for _ in range(6):
        await soon(stage.pass_until(handled.next()))
        times.append(clock.time())

    waits = [later - earlier for earlier, later in pairwise(times)]
    for wait, asked in zip(waits, (10, 20, 40, 60, 60), strict=True):
        assert wait >= asked - 2  # a step or two may pass before the time is read


@pytest.mark.parametrize(("jitter", "least"), [("full", 0.0), ("equal", 4.0), (None, 8.0)])
def test_jitter_spreads_a_delay_below_itself(jitter: Any, least: float):
    backoff = exponential(1, jitter=jitter)
    delays = [backoff(4) for _ in range(200)]
    assert all(least <= delay <= 8.0 for delay in delays)
    assert (len(set(delays)) > 1) is (jitter is not None)


async def test_a_retry_waits_in_the_broker_and_any_worker_takes_it(stage: Stage):
    clock = stage.hold_time()
    first, second = stage.app(), stage.app()
    failing(first, Retry(attempts=2, backoff=constant(3600)), Down())
    failing(second, Retry(attempts=2))
    failed, done = follow(first), follow(second)
    await stage.run(first)

    await first.publish("work", 1)
    assert isinstance((await failed.next()).error, Down)
    await stage.stop(first)
    status = await stage.group("work")
    assert (status.retrying, status.in_flight, status.waiting) == (1, 0, 0)
    await stage.run(second)
    clock.advance_to(clock.time() + 3600)

    assert (await done.next()).result == "done at attempt 2"


@pytest.mark.parametrize(
    ("retry", "error", "attempts"),
    [
        pytest.param(Retry(attempts=3, backoff=constant(0), on=(Down,)), Wrong(), 3, id="on takes what it names"),
        pytest.param(Retry(attempts=3, backoff=constant(0), on=(Down,)), ValueError(), 1, id="on leaves out others"),
        pytest.param(Retry(attempts=3, backoff=constant(0), not_on=(Wrong,)), Wrong(), 1, id="not_on leaves out"),
        pytest.param(Retry(attempts=3, backoff=constant(0), not_on=(Wrong,)), Down(), 3, id="not_on takes others"),
        pytest.param(
            Retry(attempts=3, backoff=constant(0), on=(Down,), not_on=(Wrong,)), Wrong(), 1, id="not_on before on"
        ),
        pytest.param(Retry(attempts=1), Down(), 1, id="one attempt is no retry"),
        pytest.param(Retry(attempts=3, backoff=constant(0)), Reject("no"), 1, id="a reject"),
        pytest.param(
            Retry(attempts=3, backoff=constant(0), on=(Down,)), RetryLater(), 3, id="an explicit retry needs no on"
        ),
    ],
)
async def test_what_is_retried_and_how_often(stage: Stage, retry: Retry, error: BaseException, attempts: int):
    app = stage.app()
    failing(app, retry, *[error] * 3)
    handled = follow(app)
    await stage.run(app)

    await app.publish("work", 1)
    await handled.many(attempts)
    await stage.settled("work")

    (letter,) = await stage.dead("dlq_work")
    assert [failure.attempt for failure in letter.history] == list(range(1, attempts + 1))
    assert letter.reason.startswith(type(error).__name__)
    assert handled.silent


async def test_a_message_that_has_grown_too_old_is_not_retried(stage: Stage):
    stage.hold_time()
    app = stage.app()
    failing(app, Retry(attempts=100, backoff=constant(60), max_age="5m"), *[Down()] * 100)
    handled = follow(app)
    await stage.run(app)

    await app.publish("work", 1)
    attempts = 0
    while not await stage.dead():
        await soon(stage.pass_until(handled.next(), step=5))
        attempts += 1
        await stage.until("work", lambda status: status.in_flight == 0)

    assert 3 <= attempts <= 6


async def test_an_app_has_retries_for_subscribers_that_say_nothing(stage: Stage):
    app = stage.app(retry=Retry(attempts=2, backoff=constant(0)))
    failing(app, None, Down(), Down(), Down())
    await stage.run(app)

    with pytest.raises(RequestFailed, match="Down"):
        await soon(app.request("work", 1))

    (letter,) = await stage.dead("dlq_work")
    assert len(letter.history) == 2


async def test_a_handler_that_runs_longer_than_its_timeout_is_stopped_and_retried(stage: Stage):
    stage.hold_time()
    app = stage.app()
    stopped = asyncio.Event()

    @app.subscriber("work", timeout=30, retry=Retry(attempts=2, backoff=constant(0)))
    async def work(message: Message) -> str:
        if message.attempt == 1:
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()
        return f"done at attempt {message.attempt}"

    handled = follow(app)
    await stage.run(app)

    await app.publish("work", 1)
    ended = await soon(stage.pass_until(handled.many(2)))

    assert stopped.is_set()
    assert ended[1].result == "done at attempt 2"


# -- dead letters ----------------------------------------------------------------------------------------------------


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
            raise Down
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


# -- idempotency -----------------------------------------------------------------------------------------------------


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
            raise Down
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
