"""The command line as a user has it: a folder with an app, and `carteiro` as a process of its own."""

from __future__ import annotations

import contextlib
import os
import pty
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

PATIENCE = 30.0
"""Seconds after which what was to happen has not."""

APP = """
import asyncio, os
from carteiro import Carteiro, Retry, constant

app = Carteiro("hello", grace=120)
app.topic("kept", retain="7d")

@app.subscriber("greetings")
async def greet(message: str) -> str:
    return f"hello, {message}"

@app.subscriber("checkout", retry=Retry(attempts=2, backoff=constant(0.01)))
async def checkout(order: dict) -> None:
    if order["sku"] != "good":
        raise ValueError(f"no such sku: {order['sku']}")
    print("checked out", order["sku"])

@app.subscriber("kept", group="analytics")
async def kept(number: int) -> None:
    print(f"number {number}")

@app.subscriber("slow")
async def slow(path: str) -> None:
    print("slow began")
    while not os.path.exists(path):
        await asyncio.sleep(0.01)
    print("slow ended")

@app.subscriber("deadly")
async def deadly(number: int) -> None:
    os.kill(os.getpid(), 9)

@app.subscriber("who")
async def who(message: str) -> int:
    return os.getpid()
"""


class Project:
    """A working directory with `hello.py` in it. `broker` is what the environment says, if it says anything."""

    def __init__(self, folder: Path, broker: str | None = None) -> None:
        self.folder = folder
        self._settings = {} if broker is None else {"CARTEIRO_BROKER": broker}
        self.write("hello.py", APP)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def carteiro(self, *args: str, input: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            _command(args),
            cwd=self.folder,
            env=_environment({**self._settings, **environment}),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def ok(self, *args: str, input: str | None = None, **environment: str) -> str:
        """What a command that must succeed prints."""
        done = self.carteiro(*args, input=input, **environment)
        assert done.returncode == 0, (
            f"carteiro {' '.join(args)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done.stdout

    def json(self, *args: str) -> Any:
        return msgspec.json.decode(self.ok(*args, "--json"))

    def queue(self, topic: str) -> dict[str, Any]:
        """The counts of a topic's only group."""
        (found,) = [one for one in self.json("topics") if one["topic"] == topic]
        return dict(found)

    @contextlib.contextmanager
    def running(self, *args: str, terminal: bool = False, command: str = "run") -> Iterator[Running]:
        """`carteiro run` with these arguments, killed at the end if it is still there."""
        running = Running(_command((command, *args)), self.folder, self._settings, terminal=terminal)
        try:
            yield running
        finally:
            running.kill()


class Running:
    """A process whose output is read line by line, as it comes."""

    def __init__(self, command: list[str], folder: Path, settings: dict[str, str], *, terminal: bool) -> None:
        self.output: list[str] = []
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        ours, theirs = pty.openpty() if terminal else os.pipe()
        environment = _environment({"TERM": "xterm", "NO_COLOR": "1", **settings})
        self.process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=environment
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, args=(ours,), daemon=True)
        self._reader.start()

    def until(self, pattern: str) -> re.Match[str]:
        """The first line from here on that matches; fails, showing all there was, when it does not come."""
        while True:
            try:
                line = self._lines.get(timeout=PATIENCE)
            except queue.Empty:
                line = None
            assert line is not None, f"`{pattern}` never came:\n" + "\n".join(self.output)
            if found := re.search(pattern, line):
                return found

    def ready(self) -> list[int]:
        """Wait until it consumes; the pids of its workers."""
        return [int(pid) for pid in self.until(r"is ready on .*\bpids? ([\d, ]+)")[1].split(", ")]

    def send(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def ended(self) -> int:
        """Wait for its end; its exit code, with all output read."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            finally:
                self.process.kill()

    def _read(self, source: int) -> None:
        rest = b""
        with contextlib.suppress(OSError):  # how a terminal says that its last process is gone
            while data := os.read(source, 65536):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self.output.append(line.decode().rstrip("\r"))
                    self._lines.put(self.output[-1])
        os.close(source)
        self._lines.put(None)


def _command(args: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-c", "from carteiro.cli import main; main()", *args]


def _environment(more: dict[str, str]) -> dict[str, str]:
    return {**os.environ, "COLUMNS": "200", **more}
