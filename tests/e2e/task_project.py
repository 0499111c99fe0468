"""A project with tasks, for what the command line says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.e2e.cli import Project, Running

BROKERS = ("sqlite", "redis", "rabbitmq")

APP = """
import asyncio, os
from carteiro import Carteiro, Message, Retry, chain, chord, constant, group, set_progress

app = Carteiro("shop")
once = Retry(attempts=2, backoff=constant(0.01))

@app.task
async def add(a: int, b: int) -> int:
    return a + b

@app.task(retry=once, queue="strict")
async def check(sku: str) -> str:
    if not os.path.exists("mended"):
        raise ValueError(f"no such sku: {sku}")
    print("checked", sku)
    return sku

@app.task
async def encode(size: int, message: Message) -> int:
    set_progress(3, 10, f"size {size}")
    try:
        while await app.tasks.result(message.id).status() != "running":
            await asyncio.sleep(0.01)
        print("encode runs", message.id)
        await asyncio.Event().wait()
    finally:
        print("encode interrupted", message.id)

@app.task
async def total(numbers: list[int]) -> int:
    return sum(numbers)

@app.task
async def told(failure: dict) -> None:
    print("run ended:", failure["error"])

@app.task
async def start(kind: str) -> None:
    runs = {
        "sum": chord((add.s(number, number) for number in range(60)), total.s()),
        "bad": chain(add.s(1, 1), group(add.s(3), add.s(4)), check.si("bad"), total.si([])).link_error(told.s()),
        "collected": group(add.s(1, 1), check.s("bad"), errors="collect"),
        "long": chain(add.s(1, 1), group(encode.s(), add.s(1)), total.s()),
    }
    run = await runs[kind].delay()
    print("run", run.id)
    if kind in ("sum", "collected"):
        await run.get()
        print("run ended")
"""


class Shop(Project):
    """`broker` is the system's name."""

    def __init__(self, folder: Path, system: str, request: pytest.FixtureRequest) -> None:
        super().__init__(folder, None if system == "sqlite" else request.getfixturevalue(f"{system}_url"))
        self.write("shop.py", APP)
        self.shows_what_waits = system != "rabbitmq"

    def send(self, task: str, queue: str = "default", **arguments: Any) -> str:
        """As any client can: a message of the task's name. Returns the task's id."""
        body = msgspec.json.encode(arguments).decode()
        return self.ok("publish", f"tasks.shop.{queue}", body, "--type", task, "--app", "shop:app").strip()

    def tasks(self, *args: str) -> Any:
        """JSON of a command about tasks."""
        return self.json(*args, "--app", "shop:app")

    def said(self, *args: str) -> str:
        return self.ok(*args, "--app", "shop:app")

    def refused(self, *args: str) -> str:
        """What a command says that must fail."""
        done = self.carteiro(*args, "--app", "shop:app")
        assert done.returncode == 1, done.stdout + done.stderr
        return done.stderr

    def run_to_its_end(self, kind: str) -> str:
        """Start a run, and a worker until it is over and its callbacks too; the run's id."""
        with self.running("shop:app") as worker:
            run = self.run_of(kind, worker)
            worker.until("^run ended")
            stopped(worker)
        return run

    def run_of(self, kind: str, worker: Running) -> str:
        worker.ready()
        self.send("start", kind=kind)
        return worker.until(r"^run (\S+)")[1]


def stopped(worker: Running) -> None:
    """All that it has done is written down."""
    worker.send()
    assert worker.ended() == 0
