"""Part 7: tasks, their results, and workflows of them. What else they promise is in tests/tasks."""

import asyncio
from collections.abc import Callable
from types import ModuleType

import pytest

from tests.e2e.tour.stage import PATIENCE, Stage


@pytest.mark.slow
async def test_the_tours_tasks_run_on_a_worker(
    stage: Stage, part: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
):
    tasks = part("tasks")
    await stage.run(tasks.app)

    await asyncio.wait_for(tasks.main(), 100)  # twenty-one videos at 100 a minute

    ten = [f"video {number}" for number in range(10)]
    assert capsys.readouterr().out.splitlines() == [
        "video 123",
        "https://cdn.example/beach.mov at 720p",
        str(ten),
        "10",
        "beach.mov at 720p and beach.mov at 1080p",
    ]


async def test_the_tours_script_without_a_loop_sends_its_task(stage: Stage, part: Callable[[str], ModuleType]):
    tasks = part("tasks")
    await stage.run(tasks.app)

    await asyncio.to_thread(tasks.without_a_loop)
    result = await asyncio.to_thread(lambda: tasks.process_video.delay_sync(7).get_sync(timeout=PATIENCE))

    assert result == "video 7"


async def test_what_the_tour_says_of_a_result_is_there(stage: Stage, part: Callable[[str], ModuleType]):
    tasks = part("tasks")

    async with tasks.app:
        result = await tasks.process_video.apply_async(args=(123,), countdown=60, queue="slow", unique=True)
        same = await tasks.process_video.apply_async(args=(123,), countdown=60, queue="slow", unique=True)

        assert same.id == result.id
        assert await result.status() == "pending"
        assert await result.progress() is None
        assert await result.cancel() is True
        assert await result.status() == "cancelled"


async def test_the_tours_tasks_are_still_the_functions_that_they_were(part: Callable[[str], ModuleType]):
    tasks = part("tasks")

    assert await tasks.process_video(123) == "video 123"
    assert tasks.encode("beach.mov", "720p") == "beach.mov at 720p"
