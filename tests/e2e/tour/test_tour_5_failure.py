"""Part 5: retries, rejection and timeouts."""

import asyncio
from collections.abc import Callable
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest

from carteiro import (
    Carteiro,
    Message,
    Reject,
    RequestFailed,
    Retry,
    RetryLater,
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
