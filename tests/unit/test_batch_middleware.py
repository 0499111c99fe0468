"""Middleware around a batch handler: each message by itself, and the handler once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from carteiro import Batch, BatchFailed, Carteiro, Message, Retry
from carteiro.testing import TestApp

Next = Callable[[Message], Awaitable[Any]]


async def test_each_message_of_a_batch_passes_through_middleware_and_the_handler_is_called_once():
    app = Carteiro("clicks")
    seen: list[tuple[bytes, Any]] = []
    batches: list[list[int]] = []

    @app.middleware
    async def watch(message: Message, call_next: Next) -> Any:
        result = await call_next(message)
        seen.append((message.body, result))
        return result

    @app.subscriber("clicks", batch=Batch(size=3, wait=1))
    async def count(clicks: list[int]) -> str:
        batches.append(clicks)
        return "counted"

    async with TestApp(app) as t:
        await t.publish_many("clicks", [1, 2, 3])
        await t.idle()

    assert batches == [[1, 2, 3]]
    assert sorted(seen) == [(b"1", "counted"), (b"2", "counted"), (b"3", "counted")]


async def test_middleware_sees_the_failure_of_its_own_message_only():
    app = Carteiro("clicks", retry=Retry(attempts=1))
    failures: list[tuple[bytes, str]] = []

    @app.middleware
    async def watch(message: Message, call_next: Next) -> Any:
        try:
            return await call_next(message)
        except Exception as error:
            failures.append((message.body, str(error)))
            raise

    @app.subscriber("clicks", batch=Batch(size=3, wait=1))
    async def count(clicks: list[int]) -> None:
        raise BatchFailed({clicks.index(2): ValueError("two is odd")})

    async with TestApp(app) as t:
        await t.publish_many("clicks", [1, 2, 3])
        await t.idle()
        assert [letter.message.body for letter in t.dead("clicks")] == [b"2"]

    assert failures == [(b"2", "two is odd")]


async def test_a_message_that_middleware_keeps_back_does_not_keep_the_batch_waiting():
    app = Carteiro("clicks")
    batches: list[list[int]] = []

    @app.middleware
    async def drop_threes(message: Message, call_next: Next) -> Any:
        return None if message.body == b"3" else await call_next(message)

    @app.subscriber("clicks", batch=Batch(size=3, wait=1))
    async def count(clicks: list[int]) -> None:
        batches.append(clicks)

    async with TestApp(app) as t:
        await t.publish_many("clicks", [1, 2, 3])
        await t.idle()
        assert t.dead("clicks") == []

    assert batches == [[1, 2]]
