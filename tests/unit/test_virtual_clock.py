"""The clock that one holds."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from carteiro.testing.clock import VirtualClock

START = datetime(2026, 1, 1, tzinfo=UTC).timestamp()


async def let_run() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_it_stands_still_until_it_is_moved() -> None:
    clock = VirtualClock()
    assert (clock.time(), clock.monotonic(), clock.next_due()) == (START, START, None)

    clock.advance_to(START + 60)

    assert (clock.time(), clock.monotonic()) == (START + 60, START + 60)


async def test_it_starts_where_it_is_told() -> None:
    start = datetime(2030, 6, 1, tzinfo=UTC)

    assert VirtualClock(start).time() == start.timestamp()


async def test_sleepers_wake_by_their_time_and_not_before() -> None:
    clock = VirtualClock()
    woken: list[tuple[str, float]] = []

    async def sleep(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, clock.time() - START))

    tasks = [asyncio.create_task(sleep(name, seconds)) for name, seconds in (("b", 20), ("a", 10), ("c", 20))]
    await let_run()
    assert woken == []

    while (due := clock.next_due()) is not None:
        clock.advance_to(due)
        await let_run()

    assert woken == [("a", 10), ("b", 20), ("c", 20)]
    await asyncio.gather(*tasks)


async def test_those_that_are_passed_over_wake_in_their_order() -> None:
    clock = VirtualClock()
    woken: list[int] = []

    async def sleep(seconds: int) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    tasks = [asyncio.create_task(sleep(seconds)) for seconds in (3, 1, 2)]
    await let_run()
    clock.advance_to(START + 10)
    await asyncio.gather(*tasks)

    assert woken == [1, 2, 3]


async def test_a_cancelled_sleeper_is_not_waited_for() -> None:
    clock = VirtualClock()
    short, long = asyncio.create_task(clock.sleep(1)), asyncio.create_task(clock.sleep(5))
    await let_run()
    short.cancel()
    await asyncio.gather(short, return_exceptions=True)

    assert clock.next_due() == START + 5

    long.cancel()
    await asyncio.gather(long, return_exceptions=True)
    assert clock.next_due() is None


async def test_a_sleeper_may_be_cancelled_when_it_was_just_woken() -> None:
    clock = VirtualClock()
    sleeper = asyncio.create_task(clock.sleep(1))
    await let_run()
    clock.advance_to(START + 1)
    sleeper.cancel()

    with pytest.raises(asyncio.CancelledError):
        await sleeper
    assert clock.next_due() is None


@pytest.mark.parametrize("seconds", [1e-7, 1e-12, 0.1, 0.7])
async def test_every_sleep_moves_time_however_little_is_left(seconds: float) -> None:
    clock = VirtualClock()
    woken: list[float] = []

    async def wait() -> None:
        began = clock.monotonic()
        while (left := began + seconds - clock.monotonic()) > 0 or not woken:
            await clock.sleep(max(left, 1e-12))
            woken.append(clock.monotonic())

    waiting = asyncio.create_task(wait())
    await let_run()
    while (due := clock.next_due()) is not None and len(woken) < 10:
        clock.advance_to(due)
        await let_run()

    assert len(woken) == 1
    assert START < woken[0] == pytest.approx(START + seconds)
    await waiting


@pytest.mark.parametrize("seconds", [n / 10 for n in range(1, 30)])
async def test_both_readings_agree_with_a_sleep_to_the_last_bit(seconds: float) -> None:
    clock = VirtualClock()
    by_time, by_monotonic = clock.time() + seconds, clock.monotonic() + seconds
    sleeper = asyncio.create_task(clock.sleep(seconds))
    await let_run()

    assert clock.next_due() == by_time
    clock.advance_to(by_time)
    await sleeper
    assert (clock.time(), clock.monotonic()) == (by_time, by_monotonic)


async def test_no_time_to_wait_lets_others_run() -> None:
    clock = VirtualClock()
    other = asyncio.create_task(clock.sleep(0))
    await clock.sleep(-1)
    await other

    assert clock.time() == START


async def test_time_does_not_go_back() -> None:
    clock = VirtualClock()

    with pytest.raises(ValueError, match="does not go back"):
        clock.advance_to(START - 1)
