"""Celery with results: `celery -A benchmarks.contestants.celery_tasks worker --pool threads`.

As in `celery_app.py`, with its Redis backend. Whoever calls hears of results by that backend's publications.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from celery import Celery, chain, chord, group

from benchmarks.contestants.numbers import PATIENCE, check, counted, summed
from benchmarks.contestants.orders import GROUP, Tally, broker
from benchmarks.contestants.publishing import Publisher, blocking

app = Celery(GROUP, broker=broker(), backend=broker())
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=128,
    broker_connection_retry_on_startup=True,
)
tally = Tally()


@app.task(name="number")
def number(n: int) -> int:
    tally.count()
    return n


@app.task(name="add")
def add(x: int, y: int) -> int:
    tally.count()
    return x + y


@app.task(name="total")
def total(numbers: list[int]) -> int:
    tally.count()
    return sum(numbers)


def trip() -> None:
    check(number.delay(7).get(timeout=10), 7)


def chains(count: int, steps: int) -> None:
    _all([chain(add.s(0, 1), *(add.s(1) for _ in range(steps - 1))).delay() for _ in range(count)], counted(steps))


def chords(count: int, members: int) -> None:
    _all([chord([number.s(n) for n in range(members)])(total.s()) for _ in range(count)], summed(members))


def _all(runs: list[Any], expected: int) -> None:
    for run in runs:
        check(run.get(timeout=PATIENCE), expected)


@asynccontextmanager
async def publishing() -> AsyncIterator[Publisher]:
    yield blocking(
        one=lambda: number.delay(7),
        many=lambda count: group(number.s(7) for _ in range(count)).apply_async(),
        trip=trip,
        chains=chains,
        chords=chords,
    )
