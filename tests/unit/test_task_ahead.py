"""What is read of tasks before their turn comes: for how many, for how long, and what becomes of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import cast

import pytest

from carteiro import Carteiro
from carteiro.engine import lane
from carteiro.errors import BrokerUnavailable
from carteiro.message import NO_HEADERS, Delivery, Message, Subscription
from carteiro.ports.store import Entry
from carteiro.tasks.ahead import FARTHEST, FRESH, Ahead
from carteiro.tasks.bench import Bench
from carteiro.tasks.records import RUN, task_key
from carteiro.testing import TestApp
from carteiro.testing.clock import VirtualClock

QUEUE = Subscription("tasks.shop.default", "shop")


class Desk:
    """Stands in for the bench: it shows what was asked, and answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[Sequence[str]] = []
        self.heard = self.stirred = 0
        self.clock = VirtualClock()
        self._answers: list[asyncio.Future[Mapping[str, Entry]]] = []

    def ask(self, keys: Sequence[str]) -> asyncio.Future[Mapping[str, Entry]]:
        self.asked.append(keys)
        self._answers.append(asyncio.get_running_loop().create_future())
        return self._answers[-1]

    def watch(self) -> None:
        pass

    def answer(self, error: Exception | None = None) -> None:
        for answer in self._answers:
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result({})
        self._answers.clear()


class Line:
    """A queue of tasks and what is read of them."""

    def __init__(self, count: int) -> None:
        self.desk = Desk()
        self.waiting = deque(delivery(f"id-{number}") for number in range(count))
        self.ahead = Ahead(cast(Bench, self.desk), lambda: self.waiting)

    async def run(self, count: int) -> None:
        """So many, one after the other, that wait for nothing."""
        for _ in range(count):
            reading = asyncio.ensure_future(self.ahead.read(self.waiting.popleft()))
            await asyncio.sleep(0)
            self.desk.answer()
            await reading
            self.ahead.streak += 1

    @property
    def reads(self) -> int:
        return len(self.desk.asked)


def delivery(id: str, headers: Mapping[str, str] = NO_HEADERS) -> Delivery:
    return Delivery(QUEUE, Message(id, QUEUE.topic, b"", None, headers, id, 0.0), token=id)


async def test_as_many_tasks_are_read_at_once_as_have_just_run_without_waiting():
    line = Line(4000)

    await line.run(2000)

    keys = [key for asked in line.desk.asked for key in asked]
    assert len(keys) == len(set(keys)), "each is read once"
    assert line.reads < 40
    assert max(map(len, line.desk.asked)) <= FARTHEST + 1


async def test_the_next_are_read_before_those_have_run_that_were_read():
    line = Line(1000)
    await line.run(300)
    before = line.reads

    while line.reads == before:
        await line.ahead.read(line.waiting.popleft())
        line.ahead.streak += 1

    ready = [await line.ahead.read(line.waiting.popleft()) for _ in range(100)]
    assert len(ready) == 100, "they need not wait for the read that is under way"


@pytest.mark.parametrize("why", ["a task waits, or something was told to be over", "a quarter of a second has passed"])
async def test_what_was_read_ahead_is_read_again_when(why: str):
    line = Line(1000)
    await line.run(200)
    read, next = line.reads, line.waiting[0]

    if why.startswith("a quarter"):
        line.desk.clock.advance_to(line.desk.clock.time() + FRESH + 0.001)
    else:
        line.desk.stirred += 1
    await line.run(1)

    assert line.desk.asked[read][0] == task_key(next.message.id)


async def test_after_a_task_that_waits_none_is_read_ahead_until_others_have_run():
    line = Line(1000)
    await line.run(200)
    read = line.reads

    line.desk.stirred += 1
    await line.run(1)

    assert [len(asked) for asked in line.desk.asked[read:]] == [1]


async def test_a_message_that_comes_again_is_read_again():
    line = Line(1000)
    await line.run(200)
    first, read = line.waiting[0], line.reads

    line.waiting[0] = delivery(first.message.id)
    await line.run(1)

    assert line.desk.asked[read][0] == task_key(first.message.id)


async def test_what_was_handed_back_is_forgotten():
    line = Line(10_000)

    for _ in range(20):
        await line.run(100)
        for _ in range(300):
            line.waiting.popleft()

    assert len(line.ahead._reads) <= FARTHEST


async def test_one_that_is_cancelled_while_it_waits_for_a_read_cancels_no_other():
    line = Line(1000)
    line.ahead.streak = 10
    readings = [asyncio.ensure_future(line.ahead.read(line.waiting.popleft())) for _ in range(2)]
    await asyncio.sleep(0)

    readings[0].cancel()
    await asyncio.sleep(0)
    line.desk.answer()

    assert await readings[1] == ({}, 0)


async def test_a_read_that_fails_is_an_error_to_those_that_wait_for_it_and_to_no_later_one():
    line = Line(1000)
    line.ahead.streak = 10
    readings = [asyncio.ensure_future(line.ahead.read(line.waiting.popleft())) for _ in range(2)]
    await asyncio.sleep(0)

    line.desk.answer(BrokerUnavailable("gone"))

    for reading in readings:
        with pytest.raises(BrokerUnavailable):
            await reading
    await line.run(1)


async def test_of_a_node_its_run_s_end_and_its_place_are_read_too():
    line = Line(0)
    line.waiting.append(delivery("run-1.2", {RUN: "run-1"}))

    await line.run(1)

    assert line.desk.asked == [["task:run-1.2", "task:run-1.0", "node:run-1.2"]]


async def test_a_task_that_is_cancelled_after_it_was_read_ahead_and_before_it_begins_is_not_run(
    monkeypatch: pytest.MonkeyPatch,
):
    """The loop goes round after each task: what a worker is told meanwhile it hears."""
    monkeypatch.setattr(lane, "TURN", 0.0)
    app = Carteiro("shop")
    app.task_queue("default", concurrency=400)
    ran: list[int] = []
    cancelling: list[asyncio.Task[bool]] = []
    asked: list[Sequence[str]] = []

    @app.task
    async def work(number: int) -> None:
        ran.append(number)
        if number == 200:
            assert any(len(keys) > 50 and task_key(results[300].id) in keys for keys in asked), "it is read ahead"
            cancelling.append(asyncio.create_task(results[300].cancel()))

    async with TestApp(app) as t:
        store = app.connection.store
        assert store is not None
        get = store.get

        async def spied(keys: Sequence[str]) -> Mapping[str, Entry]:
            asked.append(keys)
            return await get(keys)

        monkeypatch.setattr(store, "get", spied)
        results = [await work.apply_async((number,), countdown="1m") for number in range(400)]
        await t.advance(minutes=2)

        assert await cancelling[0] is True
        assert sorted(ran) == [number for number in range(400) if number != 300]
        assert await results[300].status() == "cancelled"
