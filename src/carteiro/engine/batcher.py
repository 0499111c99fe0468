"""Batches that form by themselves: what arrives while one is under way goes with the next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Batcher(Generic[T]):
    """Sends what was added, at most `limit` at once and one batch at a time.

    There is no timer: a lone item leaves at once, and the more arrive during a send, the larger the next batch is.
    `send` deals with its own errors; it must not raise.
    """

    def __init__(self, send: Callable[[list[T]], Awaitable[None]], *, limit: int) -> None:
        self._send = send
        self._limit = limit
        self._items: list[T] = []
        self._task: asyncio.Task[None] | None = None

    def add(self, item: T) -> None:
        self._items.append(item)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def extend(self, items: list[T]) -> None:
        self._items.extend(items)
        if self._task is None and items:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def drain(self) -> None:
        """Return when everything added so far is sent."""
        while self._task is not None:
            await asyncio.shield(self._task)

    async def _run(self) -> None:
        try:
            while self._items:
                if len(self._items) <= self._limit:
                    batch, self._items = self._items, []
                else:
                    batch, self._items = self._items[: self._limit], self._items[self._limit :]
                await self._send(batch)
        finally:
            self._task = None
