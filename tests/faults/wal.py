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
    at = how.randint(_end(content, kept), len(content))
    rest = how.randbytes(len(content) - at) if how.random() < 0.5 else b""
    log.write_bytes(content[:at] + rest)


def frame_cuts(log: Path, since: Mark) -> list[int]:
    """Byte offsets at which a log could end: at and around the end of each frame after `since`, and within it."""
    content = log.read_bytes()
    size = _frame_size(content)
    cuts: list[int] = []
    for start in range(_end(content, since), len(content), size):
        cuts += [start, start + 1, start + _FRAME_HEADER, start + size // 2, start + size - 1]
    return [*cuts, len(content)]


def _frame_size(log: bytes) -> int:
    (page,) = struct.unpack_from(">I", log, 8)
    return _FRAME_HEADER + int(page)


def _end(log: bytes, of: Mark) -> int:
    """The offset behind what was committed at a mark: the log's start, where the file has taken all that in since."""
    return _HEADER + of.frames * _frame_size(log) if log[16:24].hex() == of.salt else _HEADER
