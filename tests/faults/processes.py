"""Worker processes as a test holds them: started, listened to, stopped, killed, and started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from tests.faults.worker import Options

_ROOT = Path(__file__).parents[2]
_TAIL = 15  # lines of each process that a failing test shows


class WorkerProcess:
    """A running `tests.faults.worker`, or another that takes options of its kind."""

    def __init__(self, process: asyncio.subprocess.Process, options: Options) -> None:
        self.options = options
        self.events: list[dict[str, Any]] = []
        """Everything that it told."""
        self.pid = process.pid
        self._process = process
        self._errors: deque[str] = deque(maxlen=_TAIL)
        self._told = asyncio.Event()
        self._reading = asyncio.gather(self._read_events(), self._read_errors())

    @classmethod
    async def start(cls, url: str, options: Options) -> WorkerProcess:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", options.module, url, msgspec.json.encode(options).decode(),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=_ROOT,
        )  # fmt: skip
        return cls(process, options)

    def __str__(self) -> str:
        ended = "running" if self.code is None else f"ended with {self.code}"
        told = [json.dumps(event) for event in self.events[-_TAIL:]]
        return "\n      ".join([f"worker {self.pid}, {ended}, told {len(self.events)}", *told, *self._errors])

    @property
    def code(self) -> int | None:
        """Its exit code once it has ended, negative for a signal."""
        return self._process.returncode

    def told(self, event: str, **fields: object) -> list[dict[str, Any]]:
        """What it told so far of this kind."""
        return [one for one in self.events if one["event"] == event and fields.items() <= one.items()]

    async def tells(self, event: str, **fields: object) -> dict[str, Any]:
        """Return the first event of this kind, when it has come."""
        while not (found := self.told(event, **fields)):
            if self._reading.done():
                raise AssertionError(f"it ended without telling `{event}` {fields}")
            self._told.clear()
            await self._told.wait()
        return found[0]

    async def tells_in_all(self, event: str, count: int) -> None:
        """Return when so many events of this kind have come in all."""
        while len(self.told(event)) < count:
            if self._reading.done():
                raise AssertionError(f"it ended after {len(self.told(event))} of {count} events `{event}`")
            self._told.clear()
            await self._told.wait()

    async def command(self, *words: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)).encode() + b"\n")
        await self._process.stdin.drain()

    # -- its end, and its sleep --------------------------------------------------------------------------------------

    async def ended(self) -> int:
        """Return its exit code when it has ended and all that it told is here."""
        await asyncio.shield(self._reading)
        return await self._process.wait()

    def terminate(self) -> None:
        self._process.terminate()

    async def kill(self) -> None:
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self.ended()

    def freeze(self) -> None:
        """SIGSTOP; returns when all of its threads stand still, or at once if someone kills it meanwhile."""
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            self._process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGCONT)

    async def _read_events(self) -> None:
        assert self._process.stdout is not None
        try:
            async for line in self._process.stdout:
                if line.endswith(b"\n"):  # a kill cuts the last one off
                    self.events.append(json.loads(line))
                self._told.set()
        finally:
            self._told.set()

    async def _read_errors(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            self._errors.append(line.decode(errors="replace").rstrip())


class Crew:
    """So many workers, each started again whenever it ends."""

    def __init__(self, url: str, size: int, options: Options) -> None:
        self.working: list[WorkerProcess] = []
        self.deaths = 0
        self._url = url
        self._options = options
        self._size = size
        self._started = asyncio.Event()
        self._keeping = [asyncio.create_task(self._keep()) for _ in range(size)]

    def any(self) -> WorkerProcess | None:
        """One that is ready and running, if there is one."""
        ready = [worker for worker in self.working if worker.code is None and worker.told("ready")]
        return random.choice(ready) if ready else None

    async def ready(self) -> None:
        """Return when each of them consumes."""
        while len(self.working) < self._size:
            self._started.clear()
            await self._started.wait()
        await asyncio.gather(*(worker.tells("ready") for worker in self.working))

    async def close(self) -> None:
        for task in self._keeping:
            task.cancel()
        await asyncio.wait(self._keeping)

    async def _keep(self) -> None:
        while True:
            worker = await WorkerProcess.start(self._url, self._options)
            self.working.append(worker)
            self._started.set()
            try:
                await worker.ended()
            finally:
                self.working.remove(worker)
                if worker.code is None:
                    await worker.kill()
            self.deaths += 1


@contextlib.asynccontextmanager
async def crew(url: str, size: int, options: Options) -> AsyncIterator[Crew]:
    working = Crew(url, size, options)
    try:
        yield working
    finally:
        await working.close()
