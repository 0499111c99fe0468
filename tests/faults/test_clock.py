"""The machine's clock is moved. Leases, delays and retries are times of day, kept in the broker's file:

- forwards, leases end early: a message may be handled again beside its first handling, and only the newest attempt
  settles;
- backwards, what is waiting or held becomes visible later, by no more than the step. Nothing is lost either way.
"""

from __future__ import annotations

import pytest

from tests.faults.scene import MovedClock, scene
from tests.faults.worker import Task

HOURS = 5 * 3600.0
BACK = -3.0


@pytest.fixture
def system() -> str:
    return "sqlite"  # a server has a clock of its own


async def test_forwards_a_held_message_is_handled_again_and_only_one_attempt_settles(url: str) -> None:
    clock = MovedClock()
    async with scene(url, clock) as here:
        worker = await here.worker()
        await here.publish(Task(do="wait"))
        await here.wait(worker.tells("handling", attempt=1), "the first attempt")

        clock.offset = HOURS
        await worker.command("clock", HOURS)
        await here.wait(worker.tells("handling", attempt=2), "the second attempt")
        await worker.command("go")
        refused = await here.wait(worker.tells("refused"), "the first attempt's settle to be refused")
        await here.until_done(1)

        assert refused["attempt"] == 1
        await here.check(done=1)


async def test_forwards_what_waits_and_what_is_published_is_handled(url: str) -> None:
    clock = MovedClock()
    async with scene(url, clock) as here:
        await here.publish(*(Task() for _ in range(50)))
        worker = await here.worker()
        clock.offset = HOURS
        await worker.command("clock", HOURS)
        await here.publish(*(Task() for _ in range(50)))

        await here.until_done(100)
        await here.check(done=100)


async def test_backwards_what_waits_is_handled_after_the_step_at_the_latest(url: str) -> None:
    clock = MovedClock()
    async with scene(f"{url}?busy_timeout=0.2", clock) as here:
        worker = await here.worker()
        await here.freeze(worker)
        await here.publish(*(Task() for _ in range(50)))
        clock.offset = BACK
        await worker.command("clock", BACK)
        worker.thaw()
        await here.publish(*(Task() for _ in range(50)))

        await here.until_done(100)

        assert {event["attempt"] for event in worker.told("handling")} == {1}
        await here.check(done=100)


async def test_backwards_what_is_held_can_be_settled(url: str) -> None:
    clock = MovedClock()
    async with scene(url, clock) as here:
        worker = await here.worker()
        await here.publish(Task(do="wait"))
        await here.wait(worker.tells("handling"), "the message to be handled")
        clock.offset = BACK
        await worker.command("clock", BACK)
        await worker.command("go")

        await here.until_done(1)
        await here.check(done=1)


async def test_backwards_what_a_killed_worker_held_comes_again_after_step_and_lease_at_the_latest(url: str) -> None:
    clock = MovedClock()
    async with scene(url, clock) as here:
        victim = await here.worker()
        await here.publish(Task(do="wait"))
        await here.wait(victim.tells("handling"), "the message to be handled")
        await victim.kill()
        clock.offset = BACK
        heir = await here.worker()
        await heir.command("clock", BACK)
        await heir.command("go")

        await here.until_done(1)
        await here.check(done=1)
