"""Carteiro's tasks: `carteiro run benchmarks.contestants.carteiro_tasks:app`, the broker in CARTEIRO_BROKER.

All that it does by default is on: leases, five attempts, dead letters, results that are kept for a day.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.contestants.numbers import PATIENCE, check, counted, summed
from benchmarks.contestants.orders import GROUP, Tally
from benchmarks.contestants.publishing import CONCURRENT, Publisher, at_once
from carteiro import Carteiro, chain, chord

app = Carteiro(GROUP)
tally = Tally()


@app.task
async def number(n: int) -> int:
    tally.count()
    return n


@app.task
async def add(x: int, y: int) -> int:
    tally.count()
    return x + y


@app.task
async def total(numbers: list[int]) -> int:
    tally.count()
    return sum(numbers)


async def trip() -> None:
    check(await (await number.delay(7)).get(timeout=10), 7)


async def a_chain(steps: int) -> None:
    run = await chain(add.s(0, 1), *(add.s(1) for _ in range(steps - 1))).delay()
    check(await run.get(timeout=PATIENCE), counted(steps))


async def a_chord(members: int) -> None:
    run = await chord((number.s(n) for n in range(members)), total.s()).delay()
    check(await run.get(timeout=PATIENCE), summed(members))


@asynccontextmanager
async def publishing() -> AsyncIterator[Publisher]:
    async with app:
        yield Publisher(
            one=lambda: number.delay(7),
            many=at_once(lambda: number.delay(7), CONCURRENT),
            trip=trip,
            chains=lambda count, steps: asyncio.gather(*(a_chain(steps) for _ in range(count))),
            chords=lambda count, members: asyncio.gather(*(a_chord(members) for _ in range(count))),
        )
