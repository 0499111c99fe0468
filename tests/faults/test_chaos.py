"""Many messages, and workers that die all the time: each message is accounted for, exactly once.

`make soak` runs the long one: SOAK_MESSAGES (200,000 by default), workers killed and frozen at random.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import random

import pytest

from tests.faults.processes import Crew
from tests.faults.scene import Scene
from tests.faults.worker import Options, Task

LEASE = 2.0
WORKERS = 4
BATCH = 500


@pytest.mark.slow
@pytest.mark.parametrize(("system", "count"), [("sqlite", 20_000), ("redis", 10_000), ("rabbitmq", 5_000)])
async def test_thousands_of_messages_through_4_workers_of_which_one_is_killed_every_second(
    here: Scene, count: int
) -> None:
    options = Options(lease=LEASE, concurrency=20, quiet=True)
    async with here.crew(WORKERS, options) as crew, asyncio.TaskGroup() as group:
        killing = group.create_task(kill_one_every(1.0, crew))
        await publish(here, count)
        await here.until_done(count)
        killing.cancel()

        await here.check(done=count)
    assert crew.deaths > 0


@pytest.mark.soak
async def test_soak(here: Scene) -> None:
    faulthandler.cancel_dump_traceback_later()  # it has a guard of its own: some message must be done every minute
    count = int(os.environ.get("SOAK_MESSAGES", "200000"))
    options = Options(lease=LEASE, concurrency=20, quiet=True)
    async with here.crew(WORKERS, options) as crew, asyncio.TaskGroup() as group:
        killing = group.create_task(kill_one_every(1.0, crew))
        freezing = group.create_task(freeze_one_at_a_time(crew))
        publishing = group.create_task(publish(here, count))
        await here.until_done(count)
        await publishing
        killing.cancel()
        freezing.cancel()

        await here.check(done=count)


async def publish(here: Scene, count: int) -> None:
    """As a busy service would: in batches, beside the workers."""
    for _ in range(0, count, BATCH):
        await here.publish(*(Task(seconds=random.uniform(0, 0.05)) for _ in range(BATCH)))


async def kill_one_every(seconds: float, crew: Crew) -> None:
    while True:
        await asyncio.sleep(seconds)
        if victim := crew.any():
            await victim.kill()


async def freeze_one_at_a_time(crew: Crew) -> None:
    """For less than its lease, or for longer."""
    while True:
        await asyncio.sleep(random.uniform(0, 2))
        if victim := crew.any():
            victim.freeze()
            await asyncio.sleep(random.uniform(0, 2 * LEASE))
            victim.thaw()
