"""A server as a test holds it: started and ready, stopped, killed, frozen, started again, gone without a trace."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

PATIENCE = 60.0
"""Seconds after which what was to happen has not."""

_LOOK = 0.005  # seconds between two looks
_TAIL = 20  # lines of its log that a failure shows

# The kernel kills a tethered child when the *thread* that forked it ends: all are forked by this one, which ends with
# the process, and not by a thread that some event loop has borrowed.
_forks = ThreadPoolExecutor(1, thread_name_prefix="servers")

# Of several processes that test at once each hands out ports of its own: that of a server that is down is not free.
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_handed_out: set[int] = set()


class ServerDown(Exception):
    """A server did not do what it was to do. The message ends with the tail of its log."""


class ServerProcess:
    """A server in a folder of its own, which is removed with it.

    `command` runs it in the foreground, its log on its output; its first word is the path of a program. `ready` says
    whether it answers: it is asked until it does, and may raise `not_yet` meanwhile.
    """

    def __init__(
        self,
        name: str,
        folder: tempfile.TemporaryDirectory[str],
        command: Sequence[str],
        *,
        ready: Callable[[], object],
        not_yet: type[Exception] = OSError,
    ) -> None:
        self.name = name
        self.folder = Path(folder.name)
        self._cleanup = folder.cleanup
        self._command = command
        self._ready = ready
        self._not_yet = not_yet
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<{self.name}: {f'process {self.pid}' if self.is_running else 'not running'}>"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what it is doing --------------------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether there is a process, a frozen one included."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the process that runs, or ran last. Raises RuntimeError if it never did."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._process.pid

    def log(self, lines: int = _TAIL) -> str:
        """The last lines that it wrote, over all its lives."""
        with contextlib.suppress(FileNotFoundError):
            return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])
        return ""

    # -- its life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it, with what its folder holds, and return when it is ready. Raises ServerDown if it won't be."""
        if self.is_running:
            raise RuntimeError(f"{self!r} is started already")
        self._process = _forks.submit(self._fork).result()
        self.until(self._ready, "ready", not_yet=self._not_yet)

    def stop(self) -> None:
        """Stop it in good order (SIGTERM), and return when it is gone."""
        if self._process is not None and self.is_running:
            self.thaw()
            self._process.terminate()
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.kill()
                raise ServerDown(self._said(f"did not stop within {PATIENCE:g} s of SIGTERM")) from None

    def kill(self) -> None:
        """SIGKILL; returns when it is gone. What it had not given to the kernel is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE)

    def restart(self) -> None:
        """Stop it if it runs, and start it on the same port and folder."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP; returns when all of its threads stand still. Its connections stay open and nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        """SIGCONT: it goes on where it stood."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Kill it and remove its folder."""
        self.kill()
        self._cleanup()

    def until(self, condition: Callable[[], object], what: str, *, not_yet: type[Exception] = OSError) -> None:
        """Return when `condition()` is true, which may raise `not_yet` before that.

        Raises ServerDown, saying that it is not `what`, if the process ends first, or after `PATIENCE` seconds.
        """
        deadline = time.monotonic() + PATIENCE
        trouble: Exception | None = None
        while self.is_running:
            try:
                if condition():
                    return
            except not_yet as error:
                trouble = error
            if time.monotonic() > deadline:
                raise ServerDown(self._said(f"is not {what} after {PATIENCE:g} s")) from trouble
            time.sleep(_LOOK)
        code = self._process.returncode if self._process else None
        raise ServerDown(self._said(f"ended with exit code {code} before it was {what}")) from trouble

    # -- steps -------------------------------------------------------------------------------------------------------

    @property
    def _log(self) -> Path:
        return self.folder / "server.log"

    def _fork(self) -> subprocess.Popen[bytes]:
        tether = [sys.executable, "-I", "-S", str(Path(__file__).with_name("tether.py")), str(os.getpid())]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [*tether, *self._command], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _said(self, trouble: str) -> str:
        return f"{self.name} {trouble}; the end of its log:\n{self.log() or '(it wrote none)'}"


def new_folder(name: str) -> tempfile.TemporaryDirectory[str]:
    """A folder for a server, removed with it, and at the latest when the process ends."""
    return tempfile.TemporaryDirectory(prefix=f"carteiro-{name}-", ignore_cleanup_errors=True)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on.

    Below the ports that the kernel gives to outgoing connections: on one of those, a client that tries again and again
    to reach a server that is down ends up connected to itself, and the server finds its port taken when it comes back.
    """
    while True:
        port = random.SystemRandom().randrange(20_000 + _worker % _workers, 32_000, _workers)
        if port not in _handed_out:
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
                _handed_out.add(port)
                return port
