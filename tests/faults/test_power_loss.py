"""Copies of the file as the loss of power could leave it: what was acknowledged is there, and everything adds up."""

from __future__ import annotations

import os
import random
from collections.abc import Collection
from pathlib import Path

import msgspec
import pytest

from carteiro.ports.broker import Inspector
from carteiro.ports.registry import open_backend
from tests.faults import wal
from tests.faults.ledger import Account, account, status_of
from tests.faults.scene import DONE, WORK, MovedClock, scene
from tests.faults.worker import Options, Task

COPIES = 30


@pytest.fixture
def system() -> str:
    return "sqlite"


@pytest.mark.slow
async def test_whenever_the_power_fails_what_was_acknowledged_is_there(url: str, file: Path, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    how = random.Random(seed)
    async with scene(url) as here:
        await here.broker.close()  # nobody but processes that can be frozen may write
        worker = await here.worker(Options(quiet=True, lease=60))
        publisher = await here.worker(Options(publish=True, file=str(file)))
        for number in range(COPIES):
            due = len(publisher.told("published")) + how.randint(1, 200)
            await here.wait(publisher.tells_in_all("published", due), "an acknowledgement")
            publisher.freeze()
            worker.freeze()
            acknowledged = publisher.told("published")
            copied = wal.copy(file, tmp_path / f"copy{number}")
            wal.tear(copied, msgspec.convert(acknowledged[-1]["mark"], wal.Mark), how)

            faults = (await examine(copied)).faults([event["id"] for event in acknowledged], perhaps=True)
            assert not faults, f"copy {number} of seed {seed}: {faults}"
            publisher.thaw()
            worker.thaw()
        publisher.terminate()
        await here.wait(publisher.ended(), "the publisher to end")
        async with scene(url) as after:
            after.published = [event["id"] for event in publisher.told("published")]
            await after.until_done(len(after.published))
            await after.check(done=len(after.published))


async def test_a_settle_that_the_power_loss_cut_short_is_there_as_a_whole_or_not_at_all(
    url: str, file: Path, tmp_path: Path
) -> None:
    async with scene(url) as here:
        worker = await here.worker(Options(crash="settled", lease=60))
        orders = await here.publish(Task(do="wait"))
        await here.wait(worker.tells("handling"), "the message to be handled")
        await here.broker.close()
        claimed = wal.mark(file)
        await worker.command("go")
        await here.wait(worker.ended(), "the worker to die after its settle")

        cuts = wal.frame_cuts(Path(f"{file}-wal"), claimed)
        ends = [await after_cut(file, tmp_path / f"cut{cut}", cut, orders) for cut in cuts]

    assert ends == sorted(ends, reverse=True)
    assert (ends[0], ends[-1]) == ("waiting", "done")


async def after_cut(file: Path, to: Path, cut: int, orders: Collection[str]) -> str:
    copied = wal.copy(file, to)
    os.truncate(f"{copied}-wal", cut)
    found = await examine(copied)
    assert not (faults := found.faults(orders)), f"cut at byte {cut}: {faults}"
    return "done" if found.done else "waiting"


async def examine(database: Path) -> Account:
    """The account of a copy, an hour later: no lease holds any more, and whatever is not done can be listed."""
    backend = open_backend(f"sqlite:///{database}", clock=MovedClock(3600))
    checks = {check.name: check for check in await backend.doctor()}
    assert checks["integrity"].status == "ok", checks["integrity"].detail
    await backend.broker.connect()
    try:
        assert isinstance(backend.broker, Inspector)
        left = (await status_of(backend.broker, WORK)).left
        return await account(backend.broker, backend.broker.features, WORK, DONE, (), left)
    finally:
        await backend.broker.close()
