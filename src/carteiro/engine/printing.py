"""What handlers print, in processes that are carteiro's own."""

from __future__ import annotations

import io
import sys


def print_whole_lines() -> None:
    """Have each line that is printed come when it ends, and in one piece.

    Python keeps what goes into a pipe until it has 8 KiB, which a log reader sees late and a process that is killed
    takes with it; with PYTHONUNBUFFERED it writes a line and its end apart, and those of several workers are mixed.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, write_through=False)
