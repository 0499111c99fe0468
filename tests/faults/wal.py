"""SQLite's write-ahead log, as a power loss leaves it (https://www.sqlite.org/fileformat2.html#the_write_ahead_log).

What a commit wrote and synced stays. What was written since may be there in part, or as garbage.
"""

from __future__ import annotations

import random
import shutil
import struct
from pathlib import Path

import msgspec

_HEADER = 32  # bytes before the first frame
_FRAME_HEADER = 24  # bytes of each frame before its page


class Mark(msgspec.Struct, frozen=True):
    """A place in the log: everything before `frames` of the log with this `salt` is on the disk."""

    salt: str
    frames: int


def mark(database: Path) -> Mark:
    """How far the log is committed at this moment, from the index in shared memory."""
    with Path(f"{database}-shm").open("rb") as index:
        header = index.read(48)
    (frames,) = struct.unpack_from("=I", header, 16)
    return Mark(header[32:40].hex(), frames)


def copy(database: Path, to: Path) -> Path:
    """The file and its log, without the index: it is not on the disk after a power loss."""
    to.mkdir(parents=True)
    copied = to / database.name
    shutil.copyfile(database, copied)
    if (log := Path(f"{database}-wal")).exists():
        shutil.copyfile(log, f"{copied}-wal")
    return copied


def tear(database: Path, kept: Mark, how: random.Random) -> None:
    """Take away a part of the log's tail after `kept`: cut at some byte, or overwritten from there."""
    log = Path(f"{database}-wal")
    content = log.read_bytes() if log.exists() else b""
    if len(content) < _HEADER:
        return
    (page,) = struct.unpack_from(">I", content, 8)
    safe = _HEADER + kept.frames * (_FRAME_HEADER + page) if content[16:24].hex() == kept.salt else _HEADER
    at = how.randint(min(safe, len(content)), len(content))
    rest = how.randbytes(len(content) - at) if how.random() < 0.5 else b""
    log.write_bytes(content[:at] + rest)


def frame_cuts(log: Path, since: Mark) -> list[int]:
    """Byte offsets at which a log could end: at and around the end of each frame after `since`, and within it."""
    content = log.read_bytes()
    (page,) = struct.unpack_from(">I", content, 8)
    size = _FRAME_HEADER + page
    cuts: list[int] = []
    for start in range(_HEADER + since.frames * size, len(content), size):
        cuts += [start, start + 1, start + _FRAME_HEADER, start + size // 2, start + size - 1]
    return [*cuts, len(content)]
