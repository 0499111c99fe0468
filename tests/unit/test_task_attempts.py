"""Attempts at tasks of which somebody else has changed what the store knows."""

from __future__ import annotations

import asyncio

import pytest

from carteiro import Carteiro
from carteiro.errors import NoResult
from carteiro.message import Write
from carteiro.tasks.canvas import chord
from carteiro.tasks.records import Record, notice_key, pack, task_key
from carteiro.testing import TestApp
from tests.unit.store_apart import StoreApart


async def test_a_run_fails_in_which_the_result_of_a_predecessor_is_gone() -> None:
    app = Carteiro("shop")

    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    @app.task
    async def total(values: list[int]) -> int:
        return sum(values)

    async with TestApp(app) as t:
        run = await chord([add.s(1, 2), add.s(3, 4)], total.s().set(countdown="1h")).delay()
        await t.idle()
        assert app.connection.store is not None
        await app.connection.store.write([Write(task_key(f"{run.id}.1"), None)])

        with pytest.raises(NoResult, match=f"{run.id}.1"):
            await t.result(run, timeout="2h")


async def test_what_a_worker_ended_that_was_taken_for_dead_is_followed_by_the_one_that_took_it_over() -> None:
    """It had woken up, and was killed between the record and what follows, for there the store is apart."""
    app = Carteiro("shop")
    running = asyncio.Event()

    @app.task
    async def slow() -> int:
        running.set()
        await asyncio.Event().wait()
        return 2

    @app.task
    async def double(value: int) -> int:
        return 2 * value

    t = TestApp(app)
    store = StoreApart(t)
    async with t:
        run = await (slow.s() | double.s()).delay()
        await running.wait()

        ended = Record("succeeded", "slow", t.clock.time(), result=b"21")
        await store.write([Write(task_key(f"{run.id}.1"), pack(ended)), Write(notice_key("shop"), b"")])

        assert await t.result(run, timeout="2h") == 42
