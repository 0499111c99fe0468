"""A broker that goes and comes back under processes that publish and are killed: the outbox loses nothing, in order."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from carteiro.message import Action, Outcome, Subscription
from carteiro.ports.clock import SYSTEM_CLOCK
from carteiro.ports.registry import open_backend
from tests.faults.scene import PATIENCE
from tests.servers.redis import RedisServer, with_query

pytestmark = pytest.mark.needs("redis")

WORK = Subscription("work", "shop")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer(aof="always") as server:
        yield server


@pytest.fixture
def url(server: RedisServer) -> str:
    return with_query(server.url, timeout="1", connect_timeout="1")


class Publisher:
    """A process of `tests.faults.outbox_publisher`."""

    def __init__(self, process: asyncio.subprocess.Process, first: int) -> None:
        self._process = process
        self.next = first
        """The number that it has not told of."""

    async def told(self, count: int) -> None:
        """Return when it has told of so many more."""
        assert self._process.stdout is not None
        for _ in range(count):
            line = await self._process.stdout.readline()
            assert line, f"it ended after {self.next - 1}"
            assert int(line) == self.next
            self.next += 1

    async def kill(self) -> None:
        """What it told of meanwhile is told too."""
        assert self._process.stdout is not None
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        async for line in self._process.stdout:
            if line.endswith(b"\n"):
                self.next = int(line) + 1
        await self._process.wait()


@contextlib.asynccontextmanager
async def publisher(url: str, file: Path, first: int, *crash: str) -> AsyncIterator[Publisher]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.faults.outbox_publisher", url, str(file), str(first), *crash,
        stdout=asyncio.subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    one = Publisher(process, first)
    try:
        yield one
    finally:
        await one.kill()


async def declare(url: str) -> None:
    broker = open_backend(url, clock=SYSTEM_CLOCK).broker
    await broker.connect()
    await broker.declare([WORK])
    await broker.close()


async def all_until(url: str, last: int) -> list[int]:
    """The numbers in the broker, as they come, until this one has come."""
    broker = open_backend(url, clock=SYSTEM_CLOCK).broker
    await broker.connect()
    consumer = broker.consume([WORK])
    found: list[int] = []
    async with asyncio.timeout(PATIENCE):
        while last not in found:
            deliveries = await consumer.fetch({WORK: 500})
            await consumer.settle([Outcome(delivery, Action.ACK) for delivery in deliveries])
            found += (int(delivery.message.body) for delivery in deliveries)
    await broker.close()
    return found


@pytest.mark.slow
async def test_what_was_published_in_an_outage_by_processes_that_were_killed_arrives_in_order(
    server: RedisServer, url: str, tmp_path: Path
) -> None:
    file = tmp_path / "shop-outbox.db"
    await declare(url)
    async with publisher(url, file, 0) as first:
        await first.told(200)
        server.kill()
        await first.told(500)
        await first.kill()
    async with publisher(url, file, first.next) as second:  # it starts while the broker is away
        await second.told(500)
        await second.kill()
    async with publisher(url, file, second.next) as third:
        await third.told(200)
        await asyncio.to_thread(server.start)
        await third.told(200)
        last = third.next - 1
        found = await all_until(url, last)

    # What was under way when the server died may have arrived and be in the outbox too, and so may what a process that
    # was killed had kept and not told of: the next one publishes that number again.
    firsts = list(dict.fromkeys(found))
    assert firsts[: last + 1] == list(range(last + 1))
    assert len(found) - len(firsts) <= 3


@pytest.mark.slow
async def test_a_forwarder_that_is_killed_before_it_notes_what_is_done_doubles_nothing(
    server: RedisServer, url: str, tmp_path: Path
) -> None:
    file = tmp_path / "shop-outbox.db"
    await declare(url)
    server.kill()
    async with publisher(url, file, 0, "crash") as victim:
        await victim.told(300)
        await asyncio.to_thread(server.start)
        with pytest.raises(AssertionError, match="it ended"):
            await victim.told(10**9)
    async with publisher(url, file, victim.next) as heir:
        await heir.told(1)
        found = await all_until(url, heir.next - 1)

    firsts = list(dict.fromkeys(found))
    assert firsts == list(range(len(firsts)))
    assert len(found) - len(firsts) <= 1, "what was forwarded twice was not dropped"
