"""At least once, not LPOP: a worker is killed in the midst of a list."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

from tests.redis_natives.stage import Place

ROOT = Path(__file__).parents[2]


def worker(place: Place, name: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tests.redis_natives.worker", place.url, name], cwd=ROOT)


def handled(place: Place, name: str, count: int) -> bool:
    return bool(place.client.scard(f"{name}-done") >= count)


async def test_every_element_is_handled_though_workers_are_killed_in_the_midst_of_them(here: Place):
    jobs, client = here.name("jobs"), here.client
    topic = f"list:{jobs}"
    client.rpush(jobs, *range(1000))
    for done in (100, 300, 600):
        victim = worker(here, jobs)
        try:
            await here.until(partial(handled, here, jobs, done))
        finally:
            victim.kill()
            victim.wait()
        status = await here.group(topic)
        left = client.llen(jobs) + status.waiting + status.in_flight
        emitted = Counter(client.lrange(f"{jobs}-emitted", 0, -1))
        assert len(emitted) + left == 1000, "what is neither acked nor there is lost"
        assert emitted.total() == len(emitted), "what is acked was acked once"

    last = worker(here, jobs)
    try:
        await here.until(lambda: client.llen(f"{jobs}-emitted") == 1000)
        status = await here.done(topic)
    finally:
        last.terminate()
        last.wait()
    assert (status.dead, client.llen(jobs)) == (0, 0)
    assert {int(one) for one in client.smembers(f"{jobs}-done")} == set(range(1000))
    assert sorted(int(one) for one in client.lrange(f"{jobs}-emitted", 0, -1)) == list(range(1000))
