"""A parent and its worker processes.

Each of N *places* is held by one child at a time. A place's life:

    start ---ready---> working --dies--> wait (backoff) --> start
      |                   `----worn----> the same, while it works on; when the other is ready, SIGTERM to it
      `--failed--> the first start of all: everything stops, with the child's own line
                   later: wait (backoff), while the other places work on

The children are the truth: what is known of one is what it reported on its socket and how it ended. The socket is also
what ties it to this process: when that dies, however it dies, the kernel closes it and the child stops. With a reload,
a changed file ends all the children and starts them anew, and a start that fails waits for the next change.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from asyncio.subprocess import Process, create_subprocess_exec
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from carteiro.cli.exits import Exit
from carteiro.cli.options import HURRY, Failed, Ready, Report, RunOptions, Worn
from carteiro.cli.output import plural
from carteiro.policies.retry import exponential
from carteiro.ports.clock import SYSTEM_CLOCK, Clock

log = logging.getLogger("carteiro.run")

HEALTHY: Final = 60.0
"""Seconds of work after which a child's end counts as its place's first."""

backoff = exponential(0.5, cap=30, jitter="equal")

_decode: Callable[[bytes], Report] = msgspec.json.Decoder(Report).decode


class Child:
    """One worker process, as its parent sees it."""

    def __init__(self, process: Process, channel: socket.socket) -> None:
        self.pid = process.pid
        self._process = process
        self._channel = channel
        self._unread = b""
        self._stopping = False
        self._exit = asyncio.ensure_future(process.wait())

    @classmethod
    async def start(cls, options: RunOptions) -> Child:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        told = msgspec.json.encode(options).decode()
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            process = await create_subprocess_exec(
                sys.executable, "-m", "carteiro.cli.child", str(theirs.fileno()), told, pass_fds=(theirs.fileno(),)
            )
            undo.pop_all()
        return cls(process, ours)

    async def report(self) -> Report | None:
        """The next thing that it says, or None when it has ended."""
        hearing = asyncio.ensure_future(self._hear())
        try:
            # Not the socket alone: a process that a handler has forked may hold it open when the child is dead.
            await asyncio.wait((hearing, self._exit), return_when=asyncio.FIRST_COMPLETED)
            if hearing.done() and (report := hearing.result()) is not None:
                return report
        finally:
            hearing.cancel()
        await asyncio.shield(self._exit)
        with contextlib.suppress(OSError):
            self._unread += self._channel.recv(65536)
        return self._next()

    def stop(self) -> None:
        """Stop it gracefully."""
        if not self._stopping:
            self._stopping = True
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    def hurry(self) -> None:
        """Stop it at once."""
        self.stop()
        with contextlib.suppress(OSError):
            self._channel.send(HURRY)

    async def ended(self) -> None:
        await asyncio.shield(self._exit)
        self._channel.close()

    @property
    def ending(self) -> str:
        """How it ended: its exit code, or the signal that killed it."""
        code = self._process.returncode
        if code is None or code >= 0:
            return f"ended with exit code {code}"
        name = signal.Signals(-code).name
        return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")

    async def _hear(self) -> Report | None:
        while (report := self._next()) is None:
            try:
                data = await asyncio.get_running_loop().sock_recv(self._channel, 65536)
            except ConnectionError:
                return None
            if not data:
                return None
            self._unread += data
        return report

    def _next(self) -> Report | None:
        line, end, rest = self._unread.partition(b"\n")
        if not end:
            return None
        self._unread = rest
        return _decode(line)


class Supervisor:
    """Keeps `options.workers` children at work.

    `announce(ready, pids)` is called when all of them are at work for the first time. `changes` yields the files that
    have changed, and makes it reload.
    """

    def __init__(
        self,
        options: RunOptions,
        announce: Callable[[Ready, Sequence[int]], None],
        changes: AsyncIterator[Sequence[Path]] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._options = options
        self._announce = announce
        self._changes = changes
        self._clock = clock
        self._children: set[Child] = set()
        self._farewells: set[asyncio.Task[None]] = set()
        self._working: dict[int, Child] = {}
        self._places: list[asyncio.Task[None]] = []
        self._starting = asyncio.Lock()
        self._announced = False
        self._over: asyncio.Future[int]
        self._signals: list[int] = []

    async def run(self) -> int:
        """Work until a signal, or until the first start fails for good; returns the exit code."""
        loop = asyncio.get_running_loop()
        self._over = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        reloading = asyncio.create_task(self._reload())
        reloading.add_done_callback(self._check)
        self._fill()
        try:
            code = await self._over
        finally:
            reloading.cancel()
            await self._empty()
        return 128 + self._signals[-1] if len(self._signals) > 1 else code

    # -- the whole ---------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        self._places = [
            asyncio.create_task(self._keep(number), name=f"carteiro worker {number}")
            for number in range(1, self._options.workers + 1)
        ]
        for place in self._places:
            place.add_done_callback(self._check)

    async def _empty(self) -> None:
        """End all the children, gracefully."""
        for place in self._places:
            place.cancel()
        await asyncio.wait(self._places)
        for child in self._children:
            child.stop()
        if self._farewells:
            await asyncio.wait(self._farewells)

    def _check(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self._over.done():
            self._over.set_exception(error)

    def _stop(self, number: int) -> None:
        self._signals.append(number)
        if len(self._signals) > 1:
            log.info("stopping at once")
            for child in self._children:
                child.hurry()
            return
        log.info(
            "stopping %s: what runs may end; another signal stops it at once", plural(len(self._working), "worker")
        )
        if not self._over.done():
            self._over.set_result(Exit.DONE)

    async def _reload(self) -> None:
        if self._changes is None:
            return
        async for files in self._changes:
            more = f" and {len(files) - 1} more" if len(files) > 1 else ""
            log.info("%s%s changed: starting again", files[0], more)
            await self._empty()
            self._working.clear()
            self._fill()

    # -- one place ---------------------------------------------------------------------------------------------------

    async def _keep(self, number: int) -> None:
        """Have a child at work in this place, one after another."""
        ends = 0
        while True:
            child = await self._start()
            started = self._clock.monotonic()
            report = await child.report()
            if isinstance(report, Ready):
                self._took_over(number, child, report)
                report = await child.report()
            ends = 1 if self._clock.monotonic() - started >= HEALTHY else ends + 1
            wait = backoff(ends)
            if isinstance(report, Worn):
                log.info("worker %d (pid %d) is replaced: %s", number, child.pid, report.reason)
            else:
                if self._working.get(number) is child:
                    del self._working[number]
                if isinstance(report, Failed):
                    sys.stderr.write(report.text + "\n")
                    if self._is_final(report):
                        return
                await child.ended()
                log.warning("worker %d (pid %d) %s: starting another in %.1f s", number, child.pid, child.ending, wait)
            await self._clock.sleep(wait)

    async def _start(self) -> Child:
        async with self._starting:
            with _sigint_blocked():
                child = await Child.start(self._options)
        self._children.add(child)
        farewell = asyncio.create_task(self._see_off(child))
        self._farewells.add(farewell)
        farewell.add_done_callback(self._farewells.discard)
        return child

    async def _see_off(self, child: Child) -> None:
        await child.ended()
        self._children.discard(child)

    def _took_over(self, number: int, child: Child, ready: Ready) -> None:
        before = self._working.get(number)
        self._working[number] = child
        if before is not None:
            before.stop()
        if self._announced:
            log.info("worker %d is ready, pid %d", number, child.pid)
        elif len(self._working) == self._options.workers:
            self._announced = True
            self._announce(ready, [self._working[place].pid for place in sorted(self._working)])

    def _is_final(self, failed: Failed) -> bool:
        """Whether there is nothing to gain by another start."""
        if self._changes is not None:
            log.info("waiting for a change")
            return True
        if self._announced:
            return False
        if not self._over.done():
            self._over.set_result(failed.code)
        return True


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """What is started within does not die, with a traceback, of a ctrl-C that comes before it has its handlers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
