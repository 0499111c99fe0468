"""Slots that outlive what happens in them, and a stop that comes to its end whatever the handlers do."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from carteiro import Batch, Carteiro
from carteiro.engine.worker import LAST_WORDS
from carteiro.ports.broker import Inspector
from carteiro.testing import TestApp
from carteiro.testing.clock import VirtualClock

GRACE = 30.0


async def test_a_slot_survives_the_late_cancel_of_a_handler_that_it_had():
    app = Carteiro("shop")
    handled: list[int] = []
    slots: list[asyncio.Task[Any]] = []

    @app.subscriber("orders", concurrency=1)
    async def handle(order: int) -> None:
        handled.append(order)
        slot = asyncio.current_task()
        assert slot is not None
        slots.append(slot)

    async with TestApp(app) as t:
        for order in (1, 2, 3):
            await t.publish("orders", order)
            await t.idle()
            slots[-1].cancel()  # the handler has ended: nobody is there to be cancelled

    assert handled == [1, 2, 3]


class TellingClock(VirtualClock):
    """It tells who waits for how long."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: defaultdict[float, asyncio.Event] = defaultdict(asyncio.Event)

    async def sleep(self, seconds: float) -> None:
        self.waits[seconds].set()
        await super().sleep(seconds)


class Scene:
    """An app under a clock of its own whose handler of `orders` runs until it is told to end."""

    def __init__(self) -> None:
        self.clock = TellingClock()
        self.app = Carteiro("shop", "memory://", clock=self.clock, grace=GRACE, lease="1d")
        self.started = asyncio.Event()
        self.may_end = asyncio.Event()
        self.resists = False
        self.interrupted = 0
        self.app.subscriber("orders")(self.handle)

    async def handle(self, order: int) -> None:
        self.started.set()
        while not self.may_end.is_set():
            try:
                await self.may_end.wait()
            except asyncio.CancelledError:
                self.interrupted += 1
                if not self.resists:
                    raise

    async def waits(self, seconds: float) -> None:
        """Return when something waits for so long."""
        await self.clock.waits[seconds].wait()

    async def pass_by(self, seconds: float) -> None:
        await self.waits(seconds)
        self.clock.advance_to(self.clock.time() + seconds)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    yield scene
    scene.may_end.set()  # what a stop left behind ends with its test


async def running(scene: Scene) -> asyncio.Task[None]:
    """The app at work on a message that does not end by itself."""
    run = asyncio.create_task(scene.app.run())
    await scene.app.ready()
    await scene.app.publish("orders", 1)
    await scene.started.wait()
    return run


async def test_a_handler_that_outlives_its_cancel_does_not_hold_up_the_stop(
    scene: Scene, caplog: pytest.LogCaptureFixture
):
    scene.resists = True
    run = await running(scene)

    scene.app.stop()
    await scene.pass_by(GRACE)
    await scene.pass_by(LAST_WORDS)
    await run

    assert scene.interrupted == 1
    assert "of orders [shop] does not end, and is left to its lease" in caplog.text


async def test_a_hurry_skips_the_grace_and_then_the_last_words(scene: Scene):
    scene.resists = True
    run = await running(scene)

    scene.app.stop()
    await scene.waits(GRACE)
    scene.app.stop()
    await scene.waits(LAST_WORDS)
    assert scene.interrupted == 1
    scene.app.stop()
    await run


@pytest.mark.parametrize(
    ("first", "second"), [("stop", "stop"), ("stop", "cancel"), ("cancel", "stop"), ("cancel", "cancel")]
)
async def test_whoever_asks_twice_gets_no_grace(scene: Scene, first: str, second: str):
    run = await running(scene)
    ask: dict[str, Callable[[], Any]] = {"stop": scene.app.stop, "cancel": run.cancel}

    ask[first]()
    await scene.waits(GRACE)
    ask[second]()
    with contextlib.suppress(asyncio.CancelledError):
        await run

    assert scene.interrupted == 1


async def test_a_stop_in_haste_hands_back_what_a_batch_has_gathered():
    clock = TellingClock()
    app = Carteiro("shop", "memory://", clock=clock)

    @app.subscriber("clicks", batch=Batch(size=2, wait=8))
    async def count(clicks: list[int]) -> None:
        raise AssertionError("half a batch, and it is time to go")

    async with app:
        run = asyncio.create_task(app.run())
        await app.ready()
        await app.publish("clicks", 1)
        await clock.waits[8].wait()
        app.stop()
        app.stop()
        await run
        broker = app.connection.broker
        assert isinstance(broker, Inspector)
        assert [message.attempt for message in await broker.peek("clicks", "shop")] == [1]
