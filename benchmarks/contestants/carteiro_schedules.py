"""Carteiro's schedules: `carteiro run benchmarks.contestants.carteiro_schedules:app`, which fires them and handles what
they send, as it does by default. BENCH_SCHEDULES says how many there are, BENCH_SPEC when they are due.

    python -m benchmarks.contestants.carteiro_schedules add COUNT

adds so many that are due once, years ahead, and tells how long that took;

    python -m benchmarks.contestants.carteiro_schedules year

has a daily one fire for a year of TestApp's time.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from datetime import UTC, datetime, timedelta

from benchmarks.contestants.orders import GROUP, tell
from carteiro import Carteiro, Message, Publish, at, cron, every
from carteiro.schedules.specs import Cron, Every

BEATS = "beats"
TOLD = 100
"""So many are told of in one line."""
AT_ONCE = 200
"""Calls of `add` that wait at the same time."""
AHEAD = timedelta(days=3650)

late: list[float] = []

app = Carteiro(GROUP)


@app.subscriber(BEATS)
async def beat(number: int, message: Message) -> None:
    """Tell how much later than it was due this is: the id of what a schedule sends holds its due time in ms."""
    moment = int(message.id.rpartition("-")[0].rpartition("@")[2]) / 1000
    late.append(round(time.time() - moment, 6))
    if len(late) == TOLD:
        tell(late=late)
        late.clear()


def due(number: int, spec: str) -> Cron | Every:
    """`spread` over the seconds, all at the `same` second, or `each` second and not at the same time."""
    if spec == "each":
        return every(seconds=1)
    return cron("*/5 * * * * *" if spec == "same" else f"{number % 10}-59/10 * * * * *")


for number in range(int(os.environ.get("BENCH_SCHEDULES", "0"))):
    app.schedule(f"beat-{number}", due(number, os.environ["BENCH_SPEC"]), Publish(BEATS, number))


async def add(count: int) -> None:
    start = datetime.now(UTC) + AHEAD
    async with app:
        begun = time.perf_counter()
        for first in range(0, count, AT_ONCE):
            await asyncio.gather(
                *(
                    app.schedules.add(f"once-{number}", at(start + timedelta(minutes=number)), Publish(BEATS, number))
                    for number in range(first, min(first + AT_ONCE, count))
                )
            )
        tell(added=count, seconds=time.perf_counter() - begun)


async def year() -> None:
    from carteiro.testing import TestApp

    app, ran = Carteiro("year"), list[datetime]()

    @app.task
    async def daily() -> None:
        ran.append(t.now)

    app.schedule("daily", cron("0 2 * * *"), daily.s())
    async with TestApp(app) as t:
        begun = time.perf_counter()
        await t.advance(days=365)
        seconds = time.perf_counter() - begun
    assert len(ran) == 365, f"it ran {len(ran)} times"
    tell(year=seconds)


if __name__ == "__main__":
    asyncio.run(year() if sys.argv[1] == "year" else add(int(sys.argv[2])))
