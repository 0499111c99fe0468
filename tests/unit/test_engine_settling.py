"""A settle that the broker has applied, and whose answer was lost."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import pytest

from carteiro import BrokerUnavailable, Carteiro
from carteiro.message import Delivery, Outcome, Subscription
from carteiro.ports.broker import Consumer, Inspector
from carteiro.testing.clock import VirtualClock

ORDERS = list(range(20))

AWAY = BrokerUnavailable("the connection is lost")


class Applying:
    """Stands before a consumer: what it is to settle is settled, and then it raises one `trouble` after the other."""

    def __init__(self, inner: Consumer, troubles: list[Exception]) -> None:
        self._inner = inner
        self._troubles = troubles
        self.close = inner.close
        self.tries = 0
        self.renewed = False

    async def fetch(self, room: Mapping[Subscription, int]) -> Sequence[Delivery]:
        return await self._inner.fetch(room)

    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[Delivery]:
        lost = await self._inner.settle(outcomes)
        self.tries += 1
        if self._troubles:
            raise self._troubles.pop(0)
        return lost

    async def renew(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        lost = await self._inner.renew(deliveries)
        self.renewed = True
        return lost


class Scene:
    """A worker under a clock of its own, with a broker whose settles meet `troubles`."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.troubles: list[Exception] = []
        self.handled: list[int] = []
        self.app = Carteiro("shop", "memory://", clock=self.clock)
        self.app.subscriber("orders", concurrency=len(ORDERS))(self.handle)
        self.consumer: Applying

    async def handle(self, order: int) -> None:
        self.handled.append(order)

    async def passing(self, until: Callable[[], bool]) -> None:
        """Let time pass until this is so."""
        async with asyncio.timeout(30):
            while not until():
                self.clock.advance_to(self.clock.time() + 0.1)
                await asyncio.sleep(0)

    async def work(self, until: Callable[[], bool]) -> None:
        """Publish, handle and settle until this is so, and stop."""
        run = asyncio.create_task(self.app.run())
        await self.app.ready()
        await self.app.publish_many("orders", ORDERS)
        await self.passing(lambda: self.consumer.tries > 0 and until())
        self.app.stop()
        await self.passing(run.done)
        await run


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    scene = Scene()
    async with scene.app:
        consume = scene.app.connection.broker.consume

        def applying(subscriptions: Sequence[Subscription]) -> Applying:
            scene.consumer = Applying(consume(subscriptions), scene.troubles)
            return scene.consumer

        monkeypatch.setattr(scene.app.connection.broker, "consume", applying)
        yield scene


async def nothing_is_left(scene: Scene) -> bool:
    broker = scene.app.connection.broker
    assert isinstance(broker, Inspector)
    (status,) = await broker.groups()
    return (status.waiting, status.in_flight, status.retrying, status.dead) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "troubles",
    [[AWAY], [AWAY, AWAY], [ValueError("one of them is odd")], [AWAY, ValueError("one of them is odd")]],
    ids=["away", "away twice", "refused", "away, then refused"],
)
async def test_what_an_earlier_try_has_settled_is_told_in_one_line_and_not_as_taken_by_another(
    scene: Scene, troubles: list[Exception], caplog: pytest.LogCaptureFixture
):
    scene.troubles += troubles

    await scene.work(until=lambda: not scene.troubles)

    assert sorted(scene.handled) == ORDERS
    assert await nothing_is_left(scene)
    assert "lost the lease" not in caplog.text
    assert caplog.text.count("20 of 20 outcomes were settled by an earlier try that got no answer") == 1


async def test_a_renewal_between_two_tries_takes_none_of_what_is_settled_for_lost(
    scene: Scene, caplog: pytest.LogCaptureFixture
):
    scene.troubles += [AWAY] * 1000

    def renewed() -> bool:
        if scene.consumer.renewed:
            scene.troubles.clear()
        return not scene.troubles

    await scene.work(until=renewed)

    assert sorted(scene.handled) == ORDERS
    assert await nothing_is_left(scene)
    assert "lost the lease" not in caplog.text
    assert caplog.text.count("20 of 20 outcomes were settled by an earlier try that got no answer") == 1


async def test_a_stop_while_the_broker_is_away_says_that_it_does_not_know(
    scene: Scene, caplog: pytest.LogCaptureFixture
):
    scene.troubles += [AWAY] * 1000

    await scene.work(until=lambda: scene.consumer.tries > 1)

    told = re.findall(r"(\d+) outcomes may not be settled, and then their messages will come again", caplog.text)
    assert sum(map(int, told)) == 20
