"""SAQ with results: `saq benchmarks.contestants.saq_tasks.settings`.

As in `saq_app.py`; results are kept for ten minutes, its default. It polls for one, each
0.5 s by default: here each 2 ms, for the sake of its latency.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from saq import Queue

from benchmarks.contestants.numbers import POLL, check
from benchmarks.contestants.orders import Tally, broker
from benchmarks.contestants.publishing import Publisher, at_once

AT_ONCE = 100
queue = Queue.from_url(broker())
tally = Tally()


async def number(context: dict[str, Any], *, n: int) -> int:
    tally.count()
    return n


settings = {"queue": queue, "functions": [number]}


def one() -> Any:
    return queue.enqueue("number", n=7)


async def trip() -> None:
    check(await queue.apply("number", n=7, timeout=10, poll_interval=POLL), 7)


@asynccontextmanager
async def publishing() -> AsyncIterator[Publisher]:
    await queue.connect()
    yield Publisher(one, at_once(one, AT_ONCE), trip=trip)
    await queue.disconnect()
