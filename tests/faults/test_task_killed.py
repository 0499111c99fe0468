"""Workers that are killed wherever a task stands cost it an attempt, and its workflow nothing."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import pytest

from carteiro.tasks import unique
from carteiro.tasks.canvas import chain, chord
from tests.faults.scene import Scene
from tests.faults.task_scene import TaskScene
from tests.faults.task_worker import TaskStep
from tests.faults.worker import Step


@pytest.fixture
def steps(system: str) -> Sequence[Step | TaskStep]:
    """Where a worker can die between the claim of a task and the end of its settle, in this order."""
    if system == "rabbitmq":  # whose store is apart
        return ["claimed", "ended", "written", "joined", "committing", "settled"]
    return ["claimed", "handled", "committing", "settled"]


async def test_a_chain_goes_on_wherever_workers_are_killed_between_a_result_and_the_next_step(
    tasks: TaskScene, here: Scene, steps: Sequence[Step | TaskStep]
) -> None:
    result = await chain(tasks["add"].s(1, 2), tasks["double"].s(), tasks["double"].s()).delay()

    await tasks.kill_at([step for step in steps if step != "joined"], "add")  # a chain joins nothing
    await tasks.worker()

    assert await tasks.got(result) == 12
    assert tasks.ids("add") == [f"{result.id}.1"]
    assert tasks.ids("double") == [f"{result.id}.2", f"{result.id}.0"]
    if here.is_atomic:  # else a next task that is told of twice may be called twice, and ends once
        assert len(tasks.calls("double")) == 2


async def test_a_chord_is_complete_once_wherever_the_workers_of_its_last_member_are_killed(
    tasks: TaskScene, here: Scene, steps: Sequence[Step | TaskStep]
) -> None:
    members = [tasks["add"].s(1, 1), tasks["add"].s(2, 2), tasks["held"].s(6)]
    result = await chord(members, tasks["total"].s()).delay()
    first = await tasks.worker()
    await here.wait(first.tells_in_all("settled", 2), "all members but one to end")
    await here.wait(first.tells("running", task="held"), "the last one to run")
    await first.kill()

    await tasks.kill_at(steps, "held")
    await tasks.worker(open=True)

    one, other, (last, _) = await tasks.got(result)
    assert (one, other, last) == (2, 4, 6)
    assert len(tasks.calls("total") if here.is_atomic else tasks.ids("total")) == 1, "its callback is called once"


async def test_a_chords_callback_ends_once_wherever_its_workers_are_killed(tasks: TaskScene, here: Scene) -> None:
    members = [tasks["add"].s(1, 1), tasks["add"].s(2, 2)]
    result = await chain(chord(members, tasks["total"].s()), tasks["count"].s()).delay()

    await tasks.kill_at(["decoded", "handled"] if here.is_atomic else ["written", "committing"], "total")
    await tasks.worker()

    assert await tasks.got(result) == 2
    assert len(tasks.ids("total")) == 1
    assert len(tasks.calls("count") if here.is_atomic else tasks.ids("count")) == 1, "what follows is called once"


async def test_steps_that_were_done_are_not_done_again_by_the_next_worker(tasks: TaskScene) -> None:
    result = await tasks["trip"].delay(5)

    await tasks.kill_at(["between", "handled"], "trip")
    await tasks.worker()

    assert await tasks.got(result) == ["book 5", "pay 5"]
    assert len(tasks.calls("trip")) > 1
    assert len(tasks.calls("book")) == len(tasks.calls("pay")) == 1


async def test_a_task_that_waits_for_an_event_survives_its_workers(tasks: TaskScene, here: Scene) -> None:
    result = await tasks["order"].delay("7")
    await tasks.kill_at(["handled"], "order")  # it waits, and nobody has been told
    waits = await tasks.worker()
    await here.wait(waits.tells("settled", task="order"), "the order to wait")
    assert await result.status() == "waiting"
    await waits.kill()

    await tasks.app.publish("paid", 30, key="7")
    await tasks.kill_at(["between"], "order")
    await tasks.worker()

    assert await tasks.got(result) == ["charged 7", 30]
    assert len(tasks.calls("charge")) == 1


async def test_a_worker_that_is_killed_with_a_permit_keeps_nobody_from_running(tasks: TaskScene, here: Scene) -> None:
    first = await tasks["limited"].delay(1)
    victim = await tasks.worker()
    await here.wait(victim.tells("running", task="limited"), "the first to run")
    second = await tasks["limited"].delay(2)

    await victim.kill()
    await tasks.worker(open=True)

    assert [(await tasks.got(one))[0] for one in (first, second)] == [1, 2]


async def test_a_sender_that_is_killed_between_lock_and_publish_keeps_no_unique_task_from_running(
    tasks: TaskScene, here: Scene
) -> None:
    sender = await tasks.start(at="publishing", send=True, clock=-2 * unique.PATIENCE)
    assert await here.wait(sender.ended(), "the sender to kill itself") == -signal.SIGKILL
    (lock,) = (await tasks.store.scan("unique:once:")).values()

    result = await tasks["once"].delay(7)
    other = await tasks["once"].delay(7)
    await tasks.worker()

    assert other.id == result.id
    assert result.id.encode() in lock.value, "it has the id that the dead sender gave it, in case that was published"
    assert await tasks.got(result) == 7
    assert len(tasks.calls("once")) == 1


@pytest.mark.parametrize("system", ["rabbitmq"])
async def test_a_record_that_was_written_without_an_answer_is_not_the_end_of_its_workflow(
    tasks: TaskScene, system: str
) -> None:
    result = await chord([tasks["add"].s(1, 2), tasks["add"].s(3, 4)], tasks["total"].s()).delay()

    await tasks.worker(unanswered=True, of="add")

    assert await tasks.got(result) == [3, 7]
    assert len(tasks.calls("total")) == 1
