"""Waiting for the file's lock. Processes share it by turns of a few milliseconds."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from carteiro.backends.sqlite.mishaps import is_busy

T = TypeVar("T")

# Seconds between two tries for the lock. A batch holds it for 1 to 5 ms, so SQLite's own waits (1, 2, 5, 10, … 100 ms)
# sleep through most of what is free; random, so that those who wait do not meet again.
_SHORTEST_PAUSE: Final = 0.0002
_LONGEST_PAUSE: Final = 0.002


def patiently(step: Callable[[], T], busy_timeout: float) -> T:
    """`step`, again and again while another process holds the lock, for up to `busy_timeout` seconds.

    It blocks the thread, whatever clock the broker has. Raises sqlite3.OperationalError.
    """
    never = threading.Event()
    waited = 0.0
    while True:
        try:
            return step()
        except sqlite3.OperationalError as error:
            if not is_busy(error) or waited >= busy_timeout:
                raise
        pause = random.uniform(_SHORTEST_PAUSE, _LONGEST_PAUSE)
        never.wait(pause)
        waited += pause
