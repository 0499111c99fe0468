"""A full disk stops everything and loses nothing; when there is room again, everything goes on by itself."""

from __future__ import annotations

import contextlib
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from carteiro import BrokerUnavailable, Carteiro
from tests.faults.processes import WorkerProcess
from tests.faults.scene import Scene, scene
from tests.faults.worker import Options, Task


@pytest.fixture
def system() -> str:
    return "sqlite"


async def test_a_publisher_that_finds_no_room_raises_an_error_that_names_the_file_and_the_way_out(
    here: Scene, file: Path
) -> None:
    publisher = await here.worker(Options(publish=True, publish_timeout=0.2))
    await here.wait(publisher.tells("published"), "something to be published")
    no_room(publisher)
    failed = await here.wait(publisher.tells("failed"), "a publish to fail")
    room(publisher)
    count = len(publisher.told("published"))
    await here.wait(publisher.tells_in_all("published", count + 1), "publishing to go on")
    publisher.terminate()
    await here.wait(publisher.ended(), "the publisher to end")

    assert failed["error"] == "BrokerUnavailable"
    assert str(file) in failed["text"]
    assert "look at the disk" in failed["text"]
    here.published = [event["id"] for event in publisher.told("published")]
    await here.check(done=0, open=len(here.published))


async def test_a_worker_that_finds_no_room_settles_what_it_handled_when_there_is_room_again(here: Scene) -> None:
    worker = await here.worker(Options(lease=60))
    (order,) = await here.publish(Task(do="wait"))
    await here.wait(worker.tells("handling"), "the message to be handled")
    no_room(worker)
    await worker.command("go")
    waits = await here.wait(worker.tells("log"), "the worker to say that it cannot settle")
    await here.check(done=0, open=1)

    room(worker)
    await here.until_done(1)

    assert "wait for the broker" in waits["text"]
    assert worker.told("handling") == [{"event": "handling", "id": order, "attempt": 1}]
    await here.check(done=1)


async def test_a_worker_that_finds_no_room_says_so_and_takes_messages_again_when_there_is_some(
    here: Scene, file: Path
) -> None:
    worker = await here.worker()
    no_room(worker)
    await here.publish(*(Task() for _ in range(50)))
    await here.wait(worker.tells("log"), "the worker to say that nothing comes in")
    await worker.command("status")
    status = await here.wait(worker.tells("status"), "its status")

    room(worker)
    await here.until_done(50)

    assert str(file) in status["trouble"]
    assert "look at the disk" in status["trouble"]
    await here.check(done=50)


async def test_on_a_full_disk_what_was_acknowledged_stays_and_what_was_refused_is_not_there(disk: Path) -> None:
    async with scene(f"sqlite:///{disk}/broker.db") as here:
        worker = await here.worker(Options(lease=60))
        app = Carteiro("web", here.url, publish_timeout=0.3)
        async with app:
            fill(disk)
            with pytest.raises(BrokerUnavailable) as refused:
                await publish_for_ever(app, here.published)
            assert f"{disk}/broker.db" in str(refused.value)
            assert "free" in str(refused.value)

            (disk / "ballast").unlink()
            here.published.append(await app.publish("work", Task()))
            await here.until_done(len(here.published))

        await here.check(done=len(here.published))
        assert worker.code is None


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(tmp_path)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


async def publish_for_ever(app: Carteiro, published: list[str]) -> None:
    while True:
        published.append(await app.publish("work", Task(padding="x" * 1000)))


def fill(disk: Path) -> None:
    with (disk / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(4096))


def no_room(worker: WorkerProcess) -> None:
    """Every write to a file fails from now on."""
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


def room(worker: WorkerProcess) -> None:
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
