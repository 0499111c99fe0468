"""Chords and chains, and workers that die all the time: each run ends with the right result, its callbacks once.

`make soak` runs the long one: SOAK_RUNS (5,000 by default).
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import random

import pytest

from carteiro.tasks.canvas import chain, chord
from carteiro.tasks.result import TaskResult
from tests.faults.scene import Scene
from tests.faults.task_scene import TaskScene
from tests.faults.test_chaos import freeze_one_at_a_time, kill_one_every

WORKERS = 4
MEMBERS = 5


@pytest.mark.slow
async def test_chords_and_chains_through_4_workers_of_which_one_is_killed_every_second(
    tasks: TaskScene, here: Scene
) -> None:
    await pass_through_deaths(tasks, here, runs=80)


@pytest.mark.soak
async def test_soak_of_chords_and_chains(tasks: TaskScene, here: Scene) -> None:
    faulthandler.cancel_dump_traceback_later()
    await pass_through_deaths(tasks, here, runs=int(os.environ.get("SOAK_RUNS", "5000")), freezing=True)


async def pass_through_deaths(tasks: TaskScene, here: Scene, *, runs: int, freezing: bool = False) -> None:
    """Start so many runs, most of them while workers die, and await each."""
    async with here.crew(WORKERS, tasks.some(quiet=True, concurrency=10)) as crew, asyncio.TaskGroup() as group:
        await here.wait(crew.ready(), "the workers to be ready")
        harming = [group.create_task(kill_one_every(1.0, crew))]
        if freezing:
            harming.append(group.create_task(freeze_one_at_a_time(crew)))
        handles: dict[int, TaskResult[list[int]]] = {}
        for number in range(runs):
            handles[number] = await start(tasks, number)
            await asyncio.sleep(random.uniform(0, 0.06))
        while crew.deaths < 3:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.05)
        results = {number: await tasks.got(handle) for number, handle in handles.items()}
        for task in harming:
            task.cancel()
        await tasks.until_nothing_is_left()

    assert results == {number: expected(number) for number in range(runs)}
    assert len(tasks.ids("total")) == runs, "each run has one callback"


async def start(tasks: TaskScene, number: int) -> TaskResult[list[int]]:
    """A chain of a chord of short chains."""
    members = [
        chain(tasks["nap"].s(random.uniform(0, 0.05), number + member), tasks["double"].s())
        for member in range(MEMBERS)
    ]
    handle: TaskResult[list[int]] = await chord(members, tasks["total"].s()).delay()
    return handle


def expected(number: int) -> list[int]:
    return [2 * (number + member) for member in range(MEMBERS)]
