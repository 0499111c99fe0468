"""Which Python files have changed, for `carteiro run --reload`."""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

from carteiro.ports.clock import SYSTEM_CLOCK, Clock

LOOK: Final = 0.5
"""Seconds between two scans. A thousand files take about 10 ms."""

_SKIPPED: Final = ("__pycache__", "node_modules")


async def changes(root: Path, clock: Clock = SYSTEM_CLOCK) -> AsyncIterator[Sequence[Path]]:
    """The .py files below `root` that were written, added or removed, as often as that happens.

    Watched through the operating system where the package `watchfiles` is installed, by their times otherwise.
    """
    try:
        watchfiles: Any = importlib.import_module("watchfiles")
    except ImportError:
        before = await asyncio.to_thread(scan, root)
        while True:
            await clock.sleep(LOOK)
            now = await asyncio.to_thread(scan, root)
            if now != before:
                yield sorted({_relative(path, root) for path, _ in before.items() ^ now.items()})
                before = now
    async for found in watchfiles.awatch(root, watch_filter=watchfiles.PythonFilter()):
        yield sorted({_relative(path, root) for _, path in found})


def scan(root: Path) -> dict[str, int]:
    """Each .py file and when it was written; not those in hidden folders and virtual environments."""
    times: dict[str, int] = {}
    for folder, folders, files in os.walk(root):
        if "pyvenv.cfg" in files:
            folders.clear()
            continue
        folders[:] = [name for name in folders if name not in _SKIPPED and not name.startswith(".")]
        for name in files:
            if name.endswith(".py"):
                path = os.path.join(folder, name)
                try:
                    times[path] = os.stat(path).st_mtime_ns
                except FileNotFoundError:
                    continue  # removed since it was listed
    return times


def _relative(path: str, root: Path) -> Path:
    return Path(os.path.relpath(path, root))
