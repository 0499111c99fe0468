"""A message that kills whoever handles it dies alone."""

from __future__ import annotations

from typing import Literal

import pytest

from tests.faults.scene import LEASE, Scene
from tests.faults.worker import Options, Task


# Not on RabbitMQ: it counts what it has pushed to a process that dies, also what that had not looked at yet, so that
# innocents that come back together with the poison may be out of attempts with it (docs/guides/rabbitmq.md, "Limits").
@pytest.mark.slow
@pytest.mark.parametrize("system", ["sqlite", "redis"])
@pytest.mark.parametrize(("way", "attempts"), [("kill", 3), ("exit", 2)])
async def test_a_message_that_kills_its_worker_ends_in_the_dead_letters_and_takes_no_other_along(
    here: Scene, way: Literal["kill", "exit"], attempts: int
) -> None:
    innocents = await here.publish(*(Task() for _ in range(10)))
    (poison,) = await here.publish(Task(do=way))
    innocents += await here.publish(*(Task() for _ in range(10)))

    async with here.crew(2, Options(lease=LEASE, attempts=attempts)) as crew:
        await here.until_done(len(innocents))
        await here.until_dead(1)

        await here.check(done=len(innocents), dead=1)
        assert crew.deaths == attempts
    (letter,) = await here.inspector.dead_letters()
    assert letter.message.id == poison
    assert letter.history[-1].attempt == attempts
    assert letter.reason.startswith("WorkerLost")
