"""The shop as a process of its own, for the demo and the tests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).resolve().parents[2]


class ShopFailed(Exception):
    """The shop did not open, or closed by itself; the text is its last words."""


class ShopProcess:
    """Runs in the working directory, where what it logs is in `shop.log`. `settings` are environment variables."""

    def __init__(self, arguments: Sequence[str] = (), settings: Mapping[str, str] | None = None) -> None:
        self._command = (sys.executable, "-m", "examples.shop", "--port", "0", *arguments)
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self._environment = {**os.environ, **(settings or {}), "PYTHONPATH": paths}
        self.address = ""
        self.closed: asyncio.Task[int]

    async def open(self) -> None:
        """Return when it can be used at `address`; raises ShopFailed."""
        with _log() as log:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                env=self._environment,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is for whoever opened it, who then closes it
            )
        self._process = process
        self.closed = asyncio.create_task(process.wait())
        assert process.stdout is not None
        while said := (await process.stdout.readline()).decode():
            _, found, rest = said.partition("http://")
            if found:
                self.address = found + rest.strip()
                return
        await self.closed
        raise self.failure()

    def failure(self) -> ShopFailed:
        last = Path("shop.log").read_text(errors="replace").splitlines()[-5:]
        return ShopFailed("\n".join(("the shop is closed, and should be open; its last words:", *last)))

    async def kill(self) -> None:
        """As the system does when memory runs out: nothing of it gets to say goodbye."""
        self._process.kill()
        await self.closed

    async def close(self) -> int:
        """Close it as Ctrl-C does, and return its exit code."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT)
        return await self.closed


def _log() -> BinaryIO:
    return open("shop.log", "ab")
