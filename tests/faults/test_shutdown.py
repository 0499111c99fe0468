"""A worker that is asked to stop ends what it began, hands back what it did not begin, and exits with 0."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from carteiro import Carteiro, Message
from carteiro.message import Delivery, Subscription
from carteiro.ports.registry import open_backend
from tests.faults.scene import LEASE, WORK, Scene
from tests.faults.worker import Options, Task


async def test_stopped_under_load_no_message_is_counted_as_an_attempt_that_did_not_begin(here: Scene) -> None:
    await here.publish(*(Task(seconds=0.02) for _ in range(2_000)))
    options = Options(lease=60, concurrency=10)
    stopped = []
    for round in range(4):
        worker = await here.worker(options)
        await here.until_done(300 * round + 100)
        worker.terminate()
        assert await here.wait(worker.ended(), "the worker to end") == 0
        stopped.append(worker)

    last = await here.worker(options)
    await here.until_done(2_000)

    attempts = [event["attempt"] for worker in [*stopped, last] for event in worker.told("handling")]
    assert attempts == [1] * 2_000
    await here.check(done=2_000)


async def test_what_is_interrupted_when_the_grace_is_over_is_not_counted(here: Scene) -> None:
    worker = await here.worker(Options(lease=60, grace=0))
    (order,) = await here.publish(Task(do="wait"))
    await here.wait(worker.tells("handling"), "the message to be handled")
    worker.terminate()
    assert await here.wait(worker.ended(), "the worker to end") == 0

    heir = await here.worker()
    await heir.command("go")
    await here.until_done(1)

    assert heir.told("handling") == [{"event": "handling", "id": order, "attempt": 1}]
    await here.check(done=1)
