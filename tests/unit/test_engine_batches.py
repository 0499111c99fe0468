"""Batches: gathered full, handled by one call, and each message with an end of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from carteiro import Batch, BatchFailed, Carteiro, Message, Outgoing, Retry, constant
from carteiro.message import Delivery
from carteiro.testing import TestApp


async def test_two_slots_gather_one_full_batch_and_not_two_halves(monkeypatch: pytest.MonkeyPatch):
    app = Carteiro("clicks")
    batches: list[list[int]] = []
    first_runs, first_may_end = asyncio.Event(), asyncio.Event()

    @app.subscriber("clicks", batch=Batch(size=2, wait=8), concurrency=2)
    async def count(clicks: list[int]) -> None:
        batches.append(clicks)
        if len(batches) == 1:
            first_runs.set()
            await first_may_end.wait()

    async with TestApp(app, patience=0) as t:
        await t.publish_many("clicks", [1, 2])
        await first_runs.wait()
        await t.publish("clicks", 3)
        await t.advance(1)  # the second slot waits for more
        assert app.worker is not None
        (lane,) = app.worker.lanes.values()
        put = lane.put

        def put_as_the_first_is_free(deliveries: Sequence[Delivery]) -> None:
            first_may_end.set()
            put(deliveries)

        monkeypatch.setattr(lane, "put", put_as_the_first_is_free)
        await t.publish("clicks", 4)
        await t.idle()

    assert batches == [[1, 2], [3, 4]]


async def test_what_a_slot_has_gathered_survives_a_stray_cancel_of_that_slot():
    app = Carteiro("clicks")
    batches: list[list[int]] = []
    slots: list[asyncio.Task[Any]] = []

    @app.subscriber("clicks", batch=Batch(size=2, wait=8))
    async def count(clicks: list[int]) -> None:
        batches.append(clicks)
        slot = asyncio.current_task()
        assert slot is not None
        slots.append(slot)

    async with TestApp(app) as t:
        await t.publish_many("clicks", [1, 2])
        await t.idle()
        await t.publish("clicks", 3)
        await t.idle()  # it waits for a fourth
        slots[0].cancel()
        await t.publish("clicks", 4)
        await t.idle()

    assert batches == [[1, 2], [3, 4]]


async def test_middleware_that_tries_again_calls_the_handler_for_its_own_message():
    app = Carteiro("clicks")
    batches: list[list[int]] = []

    @app.middleware
    async def try_twice(message: Message, call_next: Callable[[Message], Awaitable[Any]]) -> Any:
        try:
            return await call_next(message)
        except ValueError:
            return await call_next(message)

    @app.subscriber("clicks", batch=Batch(size=3))
    async def count(clicks: list[int]) -> None:
        batches.append(clicks)
        if len(batches) == 1:
            raise ValueError("not yet")

    async with TestApp(app) as t:
        await t.publish_many("clicks", [1, 2, 3])
        await t.idle()
        assert t.groups()["clicks", "clicks"].in_flight == 0
        assert t.groups()["clicks", "clicks"].retrying == 0
        assert t.dead() == []

    assert batches[0] == [1, 2, 3]
    assert sorted(batches[1:]) == [[1], [2], [3]]


async def test_a_batch_whose_result_cannot_be_published_fails_as_a_whole_and_publishes_it_later():
    app = Carteiro("clicks")
    batches: list[list[int]] = []
    troubles = [OSError("the vault is closed")]

    @app.publish_middleware
    async def sign(outgoing: Outgoing, call_next: Callable[[Outgoing], Awaitable[None]]) -> None:
        if outgoing.topic == "sums" and troubles:
            raise troubles.pop()
        await call_next(outgoing)

    @app.subscriber("clicks", batch=Batch(size=3), retry=Retry(attempts=3, backoff=constant(1)))
    @app.publisher("sums")
    async def add(clicks: list[int]) -> int:
        batches.append(clicks)
        return sum(clicks)

    async with TestApp(app) as t:
        await t.publish_many("clicks", [1, 2, 3])
        await t.idle()
        assert t.published("sums") == []
        assert t.groups()["clicks", "clicks"].retrying == 3
        await t.advance(60)
        assert t.published("sums") == [6]
        assert t.dead() == []

    assert batches == [[1, 2, 3], [1, 2, 3]]


async def test_a_batch_failed_that_names_no_message_of_the_batch_fails_all_and_says_so():
    app = Carteiro("clicks", retry=Retry(attempts=1))

    @app.subscriber("clicks", batch=Batch(size=3))
    async def count(clicks: list[int]) -> None:
        raise BatchFailed({clicks[0]: ValueError("odd")})  # a value where an index belongs

    async with TestApp(app) as t:
        await t.publish_many("clicks", [100, 200, 300])
        await t.idle()
        assert [(letter.message.body, letter.reason) for letter in t.dead("clicks")] == [
            (body, "ValueError: BatchFailed names index 100 of a batch of 3") for body in (b"100", b"200", b"300")
        ]
