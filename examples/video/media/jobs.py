"""What a process of the media is asked to do, and what it says: JSON, a line each."""

from __future__ import annotations

from typing import Any

import msgspec


class Probe(msgspec.Struct, frozen=True, tag=True):
    """Look what this file is. The answer is `Probed`."""

    source: str


class Encode(msgspec.Struct, frozen=True, tag=True):
    """Make an MP4 file, H.264 and AAC, of this height in pixels. The answer is how many seconds long it is."""

    source: str
    target: str
    stream: int
    width: int
    height: int
    preset: str


class Thumbnail(msgspec.Struct, frozen=True, tag=True):
    """Make a JPEG file of the picture `at` so many seconds. The answer is that time."""

    source: str
    target: str
    stream: int
    at: float
    width: int
    height: int


Job = Probe | Encode | Thumbnail


class Probed(msgspec.Struct, frozen=True):
    """`width` and `height` are in pixels and as it is seen, that is, after it was turned."""

    seconds: float
    width: int
    height: int
    stream: int
    """The number of the picture's stream in the file."""
    tool: str


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the process: how many seconds of the video are done, or how it ended."""

    at: float = 0.0
    done: Any = None
    refused: str | None = None


class Refused(Exception):
    """Nothing can be made of this file; the text says why. To try again would not help."""
