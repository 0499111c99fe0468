"""How long the slots of a lane hold the event loop, whoever else waits for it."""

from __future__ import annotations

import asyncio

import pytest

from carteiro import Carteiro
from carteiro.engine import lane
from carteiro.testing import TestApp

SLOTS = 50
PATIENCE = 20.0


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each message is a turn."""
    monkeypatch.setattr(lane, "TURN", 0.0)


async def test_slots_that_all_could_go_on_let_the_loop_go_round_as_one_would():
    app = Carteiro("shop")
    gate, all_wait, half_done, done = (asyncio.Event() for _ in range(4))
    handled = 0

    @app.subscriber("numbers", concurrency=SLOTS, prefetch=400)
    async def handle(number: int) -> None:
        nonlocal handled
        if number < SLOTS:
            if number == SLOTS - 1:
                all_wait.set()
            await gate.wait()
        handled += 1
        if handled == SLOTS:
            half_done.set()
        if handled == 400:
            done.set()

    async with TestApp(app) as t:
        await t.publish_many("numbers", range(400))
        await asyncio.wait_for(all_wait.wait(), PATIENCE)
        gate.set()
        await asyncio.wait_for(half_done.wait(), PATIENCE)
        in_a_round = []
        while not done.is_set():
            before = handled
            await asyncio.sleep(0)
            in_a_round.append(handled - before)
        await t.idle()

    assert max(in_a_round) <= 2


async def test_every_slot_works_again_after_all_of_them_could_go_on_at_once():
    app = Carteiro("shop")
    gates = [asyncio.Event(), asyncio.Event()]
    all_wait = [asyncio.Event(), asyncio.Event()]
    begun = [0, 0]

    @app.subscriber("numbers", concurrency=SLOTS, prefetch=400)
    async def handle(number: int) -> None:
        begun[number] += 1
        if begun[number] == SLOTS:
            all_wait[number].set()
        await gates[number].wait()

    async with TestApp(app) as t:
        await t.publish_many("numbers", [0] * SLOTS + [1] * SLOTS)
        for number in (0, 1):
            await asyncio.wait_for(all_wait[number].wait(), PATIENCE)
            gates[number].set()
        await t.idle()

    assert begun == [SLOTS, SLOTS]
