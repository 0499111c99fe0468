"""A file that is locked, moved, read-only or corrupted: a clear error, no loss, and what can mend mends by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from carteiro import BrokerCorrupted, BrokerUnavailable, Carteiro, Message
from carteiro.message import Delivery, Subscription
from carteiro.ports.registry import open_backend
from carteiro.testing.clock import VirtualClock
from tests.faults.scene import Scene, scene
from tests.faults.worker import Layer, Options, Task

NOBODY = 65534


@pytest.fixture
def system() -> str:
    return "sqlite"


async def test_a_worker_before_a_locked_file_says_so_and_goes_on_when_it_is_free(url: str, file: Path) -> None:
    async with scene(f"{url}?busy_timeout=0.2") as here:
        worker = await here.worker()
        await here.freeze(worker)
        await here.publish(*(Task() for _ in range(50)))
        with locked(file):
            worker.thaw()
            await here.wait(worker.tells("log"), "the worker to say that nothing comes in")
            await worker.command("status")
            status = await here.wait(worker.tells("status"), "its status")
        await here.until_done(50)
        await worker.command("status")
        await here.wait(worker.tells("status", trouble=None), "its trouble to be over")

        assert f"`{file}` is locked by another process" in status["trouble"]
        await here.check(done=50)


async def test_a_publish_before_a_locked_file_waits_and_then_raises(url: str, file: Path) -> None:
    async with scene(f"{url}?busy_timeout=0.05") as here:
        app = Carteiro("web", here.url, publish_timeout=0.2)
        async with app:
            with locked(file), pytest.raises(BrokerUnavailable, match="locked by another process: end what holds it"):
                await app.publish("work", Task())
            here.published = [await app.publish("work", Task())]

        await here.check(done=0, open=1)


async def test_what_a_worker_handled_while_the_file_was_locked_is_settled_when_it_is_free(url: str, file: Path) -> None:
    async with scene(f"{url}?busy_timeout=0.1") as here:
        worker = await here.worker(Options(lease=60))
        await here.publish(Task(do="wait"))
        await here.wait(worker.tells("handling"), "the message to be handled")
        with locked(file):
            await worker.command("go")
            await here.wait(worker.tells("log"), "the worker to say that it cannot settle")
        await here.until_done(1)

        assert [event["attempt"] for event in worker.told("handling")] == [1]
        await here.check(done=1)


async def test_while_its_file_is_moved_away_a_worker_settles_nothing_and_goes_on_when_it_is_back(
    here: Scene, file: Path
) -> None:
    worker = await here.worker(Options(lease=60))
    await here.publish(Task(do="wait"))
    await here.wait(worker.tells("handling"), "the message to be handled")
    with moved_away(file):
        await worker.command("go")
        told = await here.wait(worker.tells("log"), "the worker to say that it cannot settle")
    await here.publish(*(Task() for _ in range(20)))

    await here.until_done(21)
    assert f"`{file}` was moved, removed or replaced" in told["text"]
    await here.check(done=21)


async def test_nothing_is_published_to_a_file_that_was_removed_or_replaced(url: str, file: Path) -> None:
    async with Carteiro("web", url, publish_timeout=0.1) as app:
        for part in parts_of(file):
            part.unlink()
        with pytest.raises(BrokerUnavailable, match="moved, removed or replaced while it was open: put it back"):
            await app.publish("work", Task())
        async with scene(url):
            with pytest.raises(BrokerUnavailable, match="moved, removed or replaced"):
                await app.publish("work", Task())


@pytest.mark.parametrize("what", ["file", "directory"])
async def test_what_may_not_be_written_is_named_with_the_way_out(url: str, what: str) -> None:
    with TemporaryDirectory() as folder:  # pytest's own are closed to other users
        file = Path(folder) / "broker.db"
        url = f"sqlite:///{file}"
        if what == "file":
            async with scene(url):
                pass
            file.chmod(0o444)
        os.chmod(folder, 0o555)
        user = NOBODY if os.geteuid() == 0 else None
        async with scene("sqlite:///" + folder + ".elsewhere.db") as here:
            here.url = url
            worker = await here.worker(Options(user=user), ready=False)
            failed = await here.wait(worker.tells("failed"), "the worker to give up")

            assert failed["error"] == "BrokerUnavailable"
            assert f"`{file}`" in failed["text"]
            assert "writable for this user" in failed["text"]
            assert await here.wait(worker.ended(), "its end") == 1


@pytest.mark.parametrize("where", ["header", "pages"])
async def test_a_corrupted_file_is_named_at_once(url: str, file: Path, where: str) -> None:
    async with scene(url) as here:
        await here.publish(*(Task(padding="x" * 1000) for _ in range(100)))
    overwrite(file, 0 if where == "header" else 4096)

    with pytest.raises(BrokerCorrupted, match=f"`{file}` is"):
        async with Carteiro("web", url) as app:
            await app.publish("work", Task())
    assert "error" in {check.status for check in await open_backend(url).doctor()}


async def test_a_worker_whose_file_is_corrupted_under_it_ends_and_says_why(url: str, file: Path) -> None:
    async with scene(f"{url}?busy_timeout=0.2") as here:
        worker = await here.worker()
        await here.freeze(worker)
        await here.publish(*(Task(padding="x" * 10_000) for _ in range(2000)))
        await here.broker.close()
        overwrite(file, 4096)
        worker.thaw()
        failed = await here.wait(worker.tells("failed"), "the worker to give up")

        assert failed["error"] == "BrokerCorrupted"
        assert str(file) in failed["text"]
        assert await here.wait(worker.ended(), "its end") == 1


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Nobody else can write meanwhile."""
    with contextlib.closing(sqlite3.connect(file, isolation_level=None, timeout=10)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


@contextlib.contextmanager
def moved_away(file: Path) -> Iterator[None]:
    elsewhere = file.parent / "elsewhere"
    elsewhere.mkdir()
    parts = parts_of(file)
    for part in parts:
        part.rename(elsewhere / part.name)
    yield
    for part in parts:
        (elsewhere / part.name).rename(part)


def parts_of(file: Path) -> list[Path]:
    """The file, its log and its index."""
    return list(file.parent.glob(f"{file.name}*"))


def overwrite(file: Path, start: int) -> None:
    with file.open("r+b") as content:
        content.seek(start)
        content.write(b"\xa5" * (file.stat().st_size - start))


async def test_a_worker_whose_broker_is_back_says_so_even_if_nothing_comes() -> None:
    clock = VirtualClock()
    app = Carteiro("shop", AwayOnce(open_backend("memory://", clock=clock)), clock=clock)

    @app.subscriber("work")
    async def handle(message: Message) -> None: ...

    running = asyncio.create_task(app.run())
    await app.ready()
    troubles = [await trouble_in_a_minute(app, clock), await trouble_in_a_minute(app, clock)]
    app.stop()
    await running

    assert troubles == ["it is away", None]


async def trouble_in_a_minute(app: Carteiro, clock: VirtualClock) -> str | None:
    """The worker's trouble when it has changed, or after a minute by the clock."""
    assert app.worker is not None
    before, end = app.worker.trouble, clock.time() + 60
    while app.worker.trouble == before and (due := clock.next_due() or end) <= end:
        for _ in range(10):
            await asyncio.sleep(0)
        if app.worker.trouble == before:
            clock.advance_to(due)
    return app.worker.trouble


class AwayOnce(Layer):
    """A backend whose first fetch fails."""

    failed = False

    @property
    def broker(self) -> Any:
        return AwayOnce(self._inner.broker)

    def consume(self, subscriptions: Sequence[Subscription]) -> Any:
        return AwayOnce(self._inner.consume(subscriptions))

    async def fetch(self, room: Mapping[Subscription, int]) -> Sequence[Delivery]:
        if not self.failed:
            self.failed = True
            raise BrokerUnavailable("it is away")
        deliveries: Sequence[Delivery] = await self._inner.fetch(room)
        return deliveries
