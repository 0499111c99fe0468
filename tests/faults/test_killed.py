"""A worker that is killed, wherever it stands, costs its message an attempt and nothing else."""

from __future__ import annotations

import signal

import pytest

from tests.faults.ledger import done_id
from tests.faults.scene import Scene
from tests.faults.worker import Options, Step, Task

BEFORE_THE_COMMIT: list[Step] = ["claimed", "decoded", "handled", "committing"]


@pytest.mark.parametrize("step", BEFORE_THE_COMMIT)
async def test_killed_before_its_settle_is_committed_the_message_is_handled_again(here: Scene, step: Step) -> None:
    victim = await here.worker(Options(crash=step))
    (order,) = await here.publish(Task())
    assert await here.wait(victim.ended(), "the worker to kill itself") == -signal.SIGKILL
    await here.collect()
    await here.check(done=int(step == "committing" and not here.is_atomic), open=1)

    heir = await here.worker()
    await here.wait(heir.tells("handling", id=order), "the second attempt")
    await here.until_done(1)

    assert [event["attempt"] for event in heir.told("handling")] == [2]
    assert done_id(here.done[0]) == order
    await here.check(done=1)


async def test_killed_after_its_settle_is_committed_the_message_is_done(here: Scene) -> None:
    victim = await here.worker(Options(crash="settled"))
    (first,) = await here.publish(Task())
    assert await here.wait(victim.ended(), "the worker to kill itself") == -signal.SIGKILL
    await here.until_done(1)
    await here.check(done=1)

    heir = await here.worker()
    (second,) = await here.publish(Task())
    await here.until_done(2)

    assert [event["id"] for event in heir.told("handling")] == [second], "what was done came again"
    assert [done_id(message) for message in here.done] == [first, second]
    await here.check(done=2)


async def test_what_a_repeated_attempt_emits_has_the_same_id(here: Scene) -> None:
    victim = await here.worker(Options(crash="handled"))
    await here.publish(Task())
    await here.wait(victim.ended(), "the worker to kill itself")

    heir = await here.worker()
    await here.until_done(1)

    (first,), (second,) = victim.told("emits"), heir.told("emits")
    assert first["id"] == second["id"] == here.done[0].id


async def test_a_worker_killed_at_its_last_attempt_leaves_a_dead_letter_that_says_so(here: Scene) -> None:
    (order,) = await here.publish(Task())
    for _ in range(2):
        victim = await here.worker(Options(crash="decoded", attempts=2), ready=False)
        await here.wait(victim.ended(), "the worker to kill itself")

    heir = await here.worker(Options(attempts=2))
    await here.until_dead(1)

    assert heir.told("handling") == []
    (letter,) = await here.inspector.dead_letters()
    assert (letter.message.id, letter.history[-1].attempt) == (order, 2)
    assert letter.reason.startswith("WorkerLost")
    assert "2 times" in letter.reason
    await here.check(done=0, dead=1)


async def test_a_worker_frozen_past_its_lease_settles_nothing_when_it_goes_on(here: Scene) -> None:
    frozen = await here.worker()
    (order,) = await here.publish(Task(do="wait"))
    await here.wait(frozen.tells("handling"), "the first attempt")
    await here.freeze(frozen)

    heir = await here.worker()
    await here.wait(heir.tells("handling", id=order, attempt=2), "another worker to take over")
    frozen.thaw()
    await frozen.command("go")
    refused = await here.wait(frozen.tells("refused"), "the frozen worker's settle to be refused")

    assert (refused["id"], refused["attempt"]) == (order, 1)
    await here.check(done=0, open=1)
    await heir.command("go")
    await here.until_done(1)
    await here.check(done=1)


async def test_a_worker_frozen_past_its_lease_goes_on_with_what_is_left(here: Scene) -> None:
    frozen = await here.worker()
    (first,) = await here.publish(Task(do="wait"))
    await here.wait(frozen.tells("handling", id=first), "the first attempt")
    await here.freeze(frozen)
    heir = await here.worker()
    await here.wait(heir.tells("handling", id=first), "another worker to take over")
    await heir.kill()

    frozen.thaw()
    await frozen.command("go")
    await here.publish(Task(), Task())

    await here.until_done(3)
    await here.check(done=3)
    assert frozen.code is None
