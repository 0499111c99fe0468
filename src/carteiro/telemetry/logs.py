"""Where the `carteiro` loggers write when the command line runs an app: stderr, for people or for machines."""

from __future__ import annotations

import logging
import os
import sys
from typing import Final, Literal, TextIO

import msgspec

Style = Literal["terminal", "plain", "json", "brief"]

_COLOURS: Final = {logging.DEBUG: "2", logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31;1"}
_KNOWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure(level: str, style: Style | None = None, *, stream: TextIO | None = None) -> None:
    """Give the `carteiro` loggers a level and a handler of their own.

    Without a style it is `terminal` or `plain`, as the stream is one or not; `brief` is for commands that say a line or
    two. An app that set up logging itself, for the root or for `carteiro`, keeps what it set: only the level is given.
    """
    target = sys.stderr if stream is None else stream
    logger = logging.getLogger("carteiro")
    logger.setLevel(level.upper())
    if logging.getLogger().handlers or logger.handlers:
        return
    handler = logging.StreamHandler(target)
    handler.setFormatter(_formatter(style or ("terminal" if colours(target) else "plain")))
    logger.addHandler(handler)
    logger.propagate = False


def colours(stream: TextIO) -> bool:
    """Whether to colour what goes there: a terminal that can, and nobody who set NO_COLOR (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _formatter(style: Style) -> logging.Formatter:
    if style == "json":
        return _Json()
    if style == "terminal":
        return _Terminal()
    if style == "brief":
        return logging.Formatter("carteiro: %(message)s")
    return logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")


class _Terminal(logging.Formatter):
    """Short and coloured: the time, what is more than a note, the text."""

    def __init__(self) -> None:
        super().__init__("%(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        colour = _COLOURS.get(record.levelno)
        label = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        at = f"{self.formatTime(record, self.datefmt)}.{int(record.msecs):03}"
        text = f"{label}{super().format(record)}"
        return f"\x1b[2m{at}\x1b[0m " + (f"\x1b[{colour}m{text}\x1b[0m" if colour else text)


class _Json(logging.Formatter):
    """One object a line; what came as `extra` is among its fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in _KNOWN},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()
