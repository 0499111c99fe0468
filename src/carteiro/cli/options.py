"""What a worker process is told, and what it tells: the words between `run`, its supervisor and its children."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

HURRY: Final = b"!"
"""What a supervisor writes to a child that is to stop at once. A second SIGTERM would not do: the kernel makes one of
two that arrive before the first is taken."""

SHOWN: Final = 12
"""How many subscriptions, and how many schedules, the line that says ready names."""


class RunOptions(msgspec.Struct, frozen=True):
    """The options of `carteiro run`. `max_memory` is in bytes, and `workers` 0 for a worker without a supervisor.
    `schedules` is whether it fires them; `"only"` is `carteiro scheduler`.
    """

    app: str
    workers: int = 0
    concurrency: int | None = None
    only: tuple[str, ...] = ()
    schedules: bool | Literal["only"] = True
    quiet: bool = False
    json: bool = False
    log_level: str = "info"
    log_json: bool = False
    max_messages: int | None = None
    max_memory: int | None = None


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """It consumes, and fires schedules if it is to. `broker` is the URL without its password; of several, each after
    its name. `fires` is None where it fires none, or the name, next time (seconds since the epoch) and time zone of
    those that are due first.
    """

    app: str
    broker: str
    subscriptions: Sequence[str]
    fires: Sequence[tuple[str, float, str | None]] | None = None


class Worn(msgspec.Struct, frozen=True, tag="worn"):
    """It has reached a limit and works on until it is replaced."""

    reason: str


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """It cannot go on, and ends with `code`; `text` is all there is to print."""

    text: str
    code: int


Report = Ready | Worn | Failed
