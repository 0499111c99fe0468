"""At least once: workers are killed in the midst of a queue or a stream, and by a message of theirs."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.rabbitmq_natives.stage import Place

ROOT = Path(__file__).parents[2]
COUNT = 400


def worker(place: Place, queue: str, kind: str, *poison: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.rabbitmq_natives.worker", place.url, queue, kind, *poison], cwd=ROOT
    )


def has(place: Place, queue: str, count: int) -> bool:
    return place.depth(queue) >= count


@pytest.mark.parametrize("kind", ["quorum", "classic", "stream"])
async def test_every_message_is_handled_though_workers_are_killed_in_the_midst_of_them(place: Place, kind: str):
    queue = place.queue("jobs", kind=kind)
    done, emitted = place.queue("jobs-done"), place.queue("jobs-emitted")
    for number in range(COUNT):
        place.publish(queue, str(number).encode())
    for so_many in (50, 200):
        victim = worker(place, queue, kind)
        try:
            await place.until(partial(has, place, done, so_many))
        finally:
            victim.kill()
            victim.wait()

    last = worker(place, queue, kind)
    seen: list[bytes] = []

    def all_seen() -> bool:
        seen.extend(place.bodies(emitted))
        return len(set(seen)) == COUNT

    try:
        await place.until(all_seen)
    finally:
        last.terminate()
        last.wait()
    handled = place.bodies(done)
    assert set(seen) == set(handled) == {str(number).encode() for number in range(COUNT)}
    async with place.inspector() as inspector:
        assert await inspector.dead_letters() == []


@pytest.mark.parametrize("kind", ["quorum", "classic", "stream"])
async def test_a_message_that_kills_its_workers_ends_as_a_dead_letter(place: Place, kind: str):
    queue, emitted = place.queue("jobs", kind=kind), place.queue("jobs-emitted")
    place.queue("jobs-done")
    place.publish(queue, b"2")
    deaths = 0
    running = worker(place, queue, kind, "2")
    try:
        async with place.inspector() as inspector:
            while not (letters := await inspector.dead_letters()):
                if running.poll() is not None:
                    deaths += 1
                    running = worker(place, queue, kind, "2")
        place.publish(queue, b"3")
        await place.until(lambda: place.bodies(emitted) == [b"3"])
    finally:
        running.terminate()
        running.wait()
    (letter,) = letters
    assert (letter.message.body, letter.history[-1].attempt, deaths) == (b"2", 3, 3)
