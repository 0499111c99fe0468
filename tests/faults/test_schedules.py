"""Schedules, and processes that die, stand still, disagree on the time or come anew: each due time is fired once.

`make soak` runs the long ones.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from carteiro.ports.clock import SYSTEM_CLOCK
from tests.faults.processes import WorkerProcess
from tests.faults.scene import Scene
from tests.faults.schedule_scene import ScheduleScene, first_dues, schedule_scene
from tests.faults.schedule_worker import FiringStep
from tests.faults.test_chaos import kill_one_every

CLAIM = 1.0


@pytest_asyncio.fixture
async def beats(here: Scene, tmp_path: Path) -> AsyncIterator[ScheduleScene]:
    """With short claims, for tests that wait for the end of one."""
    async with schedule_scene(here, tmp_path, claim=CLAIM) as scene:
        yield scene


# -- any number of processes ---------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_50_schedules_at_a_second_each_by_4_processes_of_which_one_is_killed_every_second(
    here: Scene, tmp_path: Path
) -> None:
    async with schedule_scene(here, tmp_path, count=50) as scene:
        await fire_through_deaths(here, scene, processes=4, times=8)


@pytest.mark.soak
async def test_200_schedules_at_a_second_each_for_a_minute_by_10_processes_of_which_one_is_killed_every_second(
    here: Scene, tmp_path: Path
) -> None:
    faulthandler.cancel_dump_traceback_later()
    async with schedule_scene(here, tmp_path, count=200) as scene:
        await fire_through_deaths(here, scene, processes=10, times=60)
        print(f"{len(scene.heard)} came, {scene.twins} of them under the id of another")


async def fire_through_deaths(here: Scene, scene: ScheduleScene, *, processes: int, times: int) -> None:
    async with here.crew(processes, scene.options) as crew, asyncio.TaskGroup() as group:
        await here.wait(crew.ready(), "the processes to be ready")
        killing = group.create_task(kill_one_every(1.0, crew))
        await scene.until_each_fires(times)
        while crew.deaths <= processes:  # a busy machine is slow to start those that come after them
            await scene.until_each_fires(1)
        killing.cancel()
    await scene.check()


async def test_processes_whose_clocks_differ_by_seconds_fire_each_due_time_once(
    beats: ScheduleScene, here: Scene
) -> None:
    ahead = await beats.process(clock=4.0)
    await here.wait(ahead.tells("ready"), "the process to be ready")
    others = [await beats.process(clock=clock) for clock in (0.0, -3.0, 1.5)]
    for process in others:
        await here.wait(process.tells("ready"), "the process to be ready")
    await beats.until_each_fires(3)
    await ahead.kill()
    await beats.until_each_fires(2)

    await beats.check()


# -- where one may die, or stand still -----------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_due_time_is_fired_once_wherever_the_process_that_fires_it_is_killed(
    beats: ScheduleScene, here: Scene
) -> None:
    steps: list[FiringStep] = ["read", "claimed", "sending", "sent", "moved"]
    for step in steps:
        victim = await beats.process(at=step)
        code = await here.wait(victim.ended(), f"a process to kill itself at `{step}`")
        assert code == -signal.SIGKILL, f"at `{step}`: {victim}"
    await beats.process()
    await beats.until_each_fires(3)

    await beats.check()


@pytest.mark.slow
async def test_processes_that_stood_still_for_longer_than_their_claims_fire_nothing_a_second_time(
    beats: ScheduleScene, here: Scene
) -> None:
    steps: list[FiringStep] = ["read", "claimed", "sending", "sent"]
    frozen = [await beats.process(at=step, freezes=True) for step in steps]
    for process in frozen:
        await here.wait(stands_still(process), "a process to stand still")
    await beats.process()
    await beats.until_each_fires(3)
    for process in frozen:
        process.thaw()
        await here.wait(process.tells("again"), "a process to go on")
    await beats.until_each_fires(3)

    await beats.check()


async def stands_still(process: WorkerProcess) -> None:
    """Return when it has stopped itself."""
    await asyncio.to_thread(os.waitid, os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


# -- what changes meanwhile ----------------------------------------------------------------------------------------


async def test_a_deploy_changes_what_processes_of_before_fire(beats: ScheduleScene, here: Scene) -> None:
    for _ in range(2):
        await beats.process()
    await beats.until_each_fires(2)
    old = await beats.kept()

    deployed = await beats.process(first=10, seconds=0.5)  # 0 to 9 are gone, 20 to 29 are new
    await here.wait(deployed.tells("ready"), "the process of the deploy to be ready")
    await deployed.kill()
    new = await beats.kept()
    over = SYSTEM_CLOCK.time()
    await beats.until(lambda fired: all(len(fired.get(name, ())) > 9 for name in new), "what is there now to fire")

    assert sorted(map(int, new)) == list(range(10, 30))
    fired = beats.fired()
    for name, schedule in new.items():
        before = [due for due in fired[name] if due <= schedule.anchor]
        expected = first_dues(old[name], len(before)) if before else []
        expected += first_dues(schedule, len(fired[name]) - len(before))
        assert fired[name] == [round(due, 3) for due in expected], f"{schedule}, {old.get(name)}"
    for name in old.keys() - new.keys():
        assert fired[name][-1] <= over, f"{name} was fired after it was removed"
