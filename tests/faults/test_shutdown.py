"""A worker that is asked to stop ends what it began, hands back what it did not begin, and exits with 0."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from carteiro import Carteiro, Message
from carteiro.backends.sqlite.publishing import publish
from carteiro.backends.sqlite.session import Session
from carteiro.message import Delivery, Subscription
from carteiro.ports.registry import open_backend
from tests.faults.scene import WORK, Scene, outgoing
from tests.faults.worker import Layer, Options, Task


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


async def test_what_comes_in_at_the_moment_of_the_stop_is_handed_back(here: Scene) -> None:
    orders = await here.publish(*(Task() for _ in range(20)))
    began: list[str] = []
    app = Carteiro("shop", StoppedByItsFetch(open_backend(here.url)), lease=60)

    @app.subscriber("work")
    async def handle(message: Message) -> None:
        began.append(message.id)

    with contextlib.suppress(asyncio.CancelledError):
        await here.wait(app.run(), "the worker to stop")

    assert began == []
    assert sorted(await here.waiting(len(orders))) == sorted((id, 1) for id in orders)


@pytest.mark.parametrize("system", ["sqlite"])
async def test_what_was_claimed_for_a_fetch_that_nobody_awaits_any_more_is_handed_back_by_close(here: Scene) -> None:
    long = Subscription(WORK.topic, WORK.group, lease=60)
    consumer = here.broker.consume([long])
    fetch = asyncio.create_task(consumer.fetch({long: 1}))
    await here.broker.declare([WORK])  # when the fetch waits
    order = outgoing(Task())
    claiming, go_on = threading.Event(), threading.Event()

    def publish_slowly(session: Session) -> None:
        publish(session, [order])
        claiming.set()
        go_on.wait()

    publishing = asyncio.create_task(here.broker._database.write(publish_slowly))  # type: ignore[attr-defined]
    await asyncio.to_thread(claiming.wait)
    fetch.cancel()
    closing = asyncio.create_task(consumer.close())
    await asyncio.wait([fetch])
    go_on.set()
    await here.wait(asyncio.gather(publishing, closing), "the consumer to close")

    assert await here.waiting(1) == [(order.id, 1)]


class StoppedByItsFetch(Layer):
    """A backend whose first fetch to bring something has the worker's intake cancelled before it learns of it."""

    @property
    def broker(self) -> Any:
        return StoppedByItsFetch(self._inner.broker)

    def consume(self, subscriptions: Sequence[Subscription]) -> Any:
        return StoppedByItsFetch(self._inner.consume(subscriptions))

    async def fetch(self, room: Mapping[Subscription, int]) -> Sequence[Delivery]:
        deliveries: Sequence[Delivery] = await self._inner.fetch(room)
        (intake,) = (task for task in asyncio.all_tasks() if task.get_name() == "carteiro intake")
        asyncio.get_running_loop().call_soon(intake.cancel)
        return deliveries
