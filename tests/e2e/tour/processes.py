"""Handlers that run in processes, in a module that a child imports fast."""

import os
from pathlib import Path


def pid(path: str) -> int:
    return os.getpid()


def spin(fifo: str) -> None:
    """Say which process runs this, and never end."""
    Path(fifo).write_text(str(os.getpid()))
    while True:
        pass
