"""What runs twice, stands still, fails or is cancelled: each task ends once, and its workflow as its tasks did."""

from __future__ import annotations

import pytest

from carteiro.errors import TaskCancelled
from carteiro.tasks.canvas import chord, group
from tests.faults.scene import Scene
from tests.faults.task_scene import LEASE, TaskScene
from tests.faults.worker import Failed


async def test_a_member_of_a_chord_that_is_delivered_again_with_another_result_counts_once(
    tasks: TaskScene, here: Scene
) -> None:
    result = await chord([tasks["held"].s(1), tasks["add"].s(2, 3)], tasks["total"].s()).delay()
    first = await tasks.worker()
    member = (await here.wait(first.tells("running", task="held"), "the member to run"))["id"]
    await tasks.freeze(first)  # so that the copy goes to another worker
    second = await tasks.worker()
    await tasks.publish_again(member, "held")
    await here.wait(second.tells("running", id=member), "the copy to run")
    first.thaw()

    await second.command("go")
    assert await tasks.got(result) == [[1, second.pid], 5], "the first result counts"
    await first.command("go")
    await tasks.until_nothing_is_left()

    assert await tasks.got(result) == [[1, second.pid], 5]
    assert await tasks.got(tasks.app.tasks.result(member)) == [1, second.pid]
    assert len(tasks.calls("total")) == 1


async def test_members_that_are_delivered_again_after_the_last_was_counted_start_nothing(
    tasks: TaskScene, here: Scene
) -> None:
    result = await chord([tasks["add"].s(1, 1), tasks["add"].s(2, 2)], tasks["total"].s()).delay()
    worker = await tasks.worker()
    assert await tasks.got(result) == [2, 4]

    for member in tasks.ids("add"):
        await tasks.publish_again(member, "add")
        await here.wait(worker.tells_in_all("settled", len(worker.told("settled")) + 1), "the copy to be settled")
    await tasks.until_nothing_is_left()

    assert len(tasks.calls("add")) == 2
    assert len(tasks.calls("total")) == 1


async def test_of_a_group_whose_members_fail_the_error_callback_is_called_once_though_workers_die(
    tasks: TaskScene, here: Scene
) -> None:
    members = [tasks["broken"].s(1), tasks["broken"].s(2), tasks["add"].s(1, 1)]
    result = await chord(members, tasks["total"].s()).link_error(tasks["mourn"].s()).delay()

    await tasks.kill_at(["handled", "committing"], "broken")
    await tasks.worker()

    with pytest.raises(Failed, match=r"1|2"):
        await tasks.got(result)
    await tasks.until_nothing_is_left()
    assert len(tasks.calls("mourn") if here.is_atomic else tasks.ids("mourn")) == 1
    assert tasks.calls("total") == []


async def test_a_group_that_collects_has_the_error_of_its_one_failing_member_in_its_place(
    tasks: TaskScene, here: Scene
) -> None:
    members = group([tasks["add"].s(1, 1), tasks["broken"].s(7), tasks["add"].s(2, 2)], errors="collect")
    result = await (members | tasks["count"].s()).delay()

    await tasks.kill_at(["handled", "committing"], "broken")
    await tasks.worker()

    assert await tasks.got(result) == 3
    assert len(tasks.calls("count") if here.is_atomic else tasks.ids("count")) == 1


async def test_what_is_cancelled_while_no_worker_is_up_never_runs(tasks: TaskScene) -> None:
    task = await tasks["add"].delay(1, 1)
    run = await chord([tasks["add"].s(2, 2), tasks["add"].s(3, 3)], tasks["total"].s()).delay()
    assert await task.cancel()
    assert await run.cancel()

    await tasks.worker()
    await tasks.until_nothing_is_left()

    assert tasks.calls("add") == tasks.calls("total") == []
    for cancelled in (task, run):
        with pytest.raises(TaskCancelled):
            await tasks.got(cancelled)


async def test_what_is_cancelled_while_its_worker_stands_still_is_cancelled_when_that_goes_on(
    tasks: TaskScene, here: Scene
) -> None:
    result = await tasks["held"].delay(1)
    worker = await tasks.worker()
    await here.wait(worker.tells("running", task="held"), "it to run")
    await tasks.freeze(worker)

    assert await result.cancel()
    worker.thaw()

    await here.wait(worker.tells("cancelled", id=result.id), "it to be interrupted")
    await tasks.until_nothing_is_left()
    with pytest.raises(TaskCancelled):
        await tasks.got(result)
    assert len(tasks.calls("held")) == 1


async def test_a_countdown_that_is_longer_than_any_lease_ends_in_one_call(tasks: TaskScene) -> None:
    for _ in range(2):
        await tasks.worker()

    result = await tasks["add"].apply_async((1, 2), countdown=3 * LEASE)

    assert await tasks.got(result) == 3
    assert tasks.calls("add") == [(result.id, 1)]


async def test_a_task_that_blocks_its_thread_for_longer_than_its_lease_is_called_once(tasks: TaskScene) -> None:
    for _ in range(2):
        await tasks.worker()

    result = await tasks["blocks"].delay(4 * LEASE)

    assert await tasks.got(result) == 1
    assert tasks.calls("blocks") == [(result.id, 1)]


async def test_a_task_that_blocks_the_loop_for_longer_than_its_lease_ends_once(tasks: TaskScene, here: Scene) -> None:
    result = await chord([tasks["blocks_the_loop"].s(4 * LEASE)], tasks["total"].s()).delay()
    for _ in range(2):
        await tasks.worker()

    ((attempt, pid),) = await tasks.got(result)
    await tasks.until_nothing_is_left()

    ended = [call[1] for call in tasks.calls("blocks_the_loop")]
    assert attempt in ended
    assert await tasks.got(result) == [[attempt, pid]]
    assert len(tasks.calls("total")) == 1


async def test_a_frozen_worker_that_wakes_up_and_ends_its_task_changes_nothing_that_is_settled(
    tasks: TaskScene, here: Scene
) -> None:
    result = await chord([tasks["held"].s(1)], tasks["total"].s()).delay()
    frozen = await tasks.worker()
    await here.wait(frozen.tells("running", task="held"), "the first attempt")
    await tasks.freeze(frozen)
    heir = await tasks.worker()
    await here.wait(heir.tells("running", task="held", attempt=2), "another worker to take over")

    await heir.command("go")
    assert await tasks.got(result) == [[1, heir.pid]]
    frozen.thaw()
    await frozen.command("go")
    await tasks.until_nothing_is_left()

    assert await tasks.got(result) == [[1, heir.pid]]
    assert await tasks.got(tasks.app.tasks.result(tasks.ids("held")[0])) == [1, heir.pid]
    assert len(tasks.calls("total")) == 1


async def test_a_frozen_worker_that_wakes_up_and_ends_its_task_before_the_one_that_took_it_over_settles_nothing(
    tasks: TaskScene, here: Scene
) -> None:
    result = await chord([tasks["held"].s(1)], tasks["total"].s()).delay()
    frozen = await tasks.worker()
    await here.wait(frozen.tells("running", task="held"), "the first attempt")
    await tasks.freeze(frozen)
    heir = await tasks.worker()
    await here.wait(heir.tells("running", task="held", attempt=2), "another worker to take over")

    frozen.thaw()
    await frozen.command("go")
    await here.wait(frozen.tells("refused"), "the frozen worker's settle to be refused")
    await heir.command("go")

    # Where the store is not the broker's, the result is in it before the settle is refused: then it is the first.
    assert await tasks.got(result) == [[1, (heir if here.is_atomic else frozen).pid]]
    await tasks.until_nothing_is_left()
    assert len(tasks.calls("total")) == 1
