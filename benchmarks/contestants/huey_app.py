"""Huey on SQLite or Redis: `huey_consumer benchmarks.contestants.huey_app.huey`, the broker in BENCH_BROKER.

Its documented defaults, one worker thread among them (2, 4 and 8 were no faster), but for one: on SQLite `fsync=True`,
which says what SQLite's own default is, so that its file is as safe as ours. A task is deleted before it runs, so a
crash loses it: leases and fences it does not have to write. The body travels as bytes and is validated by the task.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from huey import RedisHuey, SqliteHuey

from benchmarks.contestants.orders import BODY, Order, Tally, broker, filling, stamped
from benchmarks.contestants.publishing import Publisher, blocking

SQLITE = "sqlite:///"


def connect(url: str) -> Any:
    if url.startswith(SQLITE):
        return SqliteHuey(filename=url.removeprefix(SQLITE), fsync=not filling())
    return RedisHuey(url=url)


huey = connect(broker())
tally = Tally()


@huey.task(retries=4)
def handle(body: bytes) -> None:
    Order.model_validate_json(body)
    tally.count()


@huey.task(retries=4)
def stamp(sent: float) -> None:
    stamped(sent)


@asynccontextmanager
async def publishing() -> AsyncIterator[Publisher]:
    yield blocking(lambda: handle(BODY), stamp)
