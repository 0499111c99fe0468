"""From a request's body to a file: piece by piece, and never more than is allowed."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator

import anyio
import anyio.to_thread
from pydantic import BaseModel, ByteSize
from starlette.requests import ClientDisconnect

from examples.video import shelf
from examples.video.settings import settings


class Upload(BaseModel):
    """What came. `at` is in seconds since the epoch."""

    id: str
    name: str
    email: str | None
    bytes: int
    at: float


class NotTaken(Exception):
    """An upload that is not kept, and the HTTP status that says so."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def check_size(announced: str | None) -> None:
    """By the header, so that nobody uploads for an hour what will not be taken. Raises NotTaken."""
    if announced is not None and announced.isdecimal() and int(announced) > settings.max_size:
        raise _too_large()


async def take(video: str, body: AsyncIterator[bytes]) -> int:
    """Write it to the video's folder; returns its length in bytes. Raises NotTaken."""
    length = 0
    try:
        with shelf.written(shelf.file(video, "source")) as path:
            async with await anyio.open_file(path, "wb") as file:
                async for piece in body:
                    length += len(piece)
                    if length > settings.max_size:
                        raise _too_large()
                    await file.write(piece)
                await file.flush()
                await anyio.to_thread.run_sync(os.fsync, file.wrapped.fileno())  # takes long, and not on the loop
            if not length:
                raise NotTaken(400, "the request has no body: send the file itself, `curl --data-binary @clip.mp4`")
    except ClientDisconnect as error:
        raise NotTaken(400, f"the upload broke off after {length} bytes") from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise NotTaken(507, "the disk is full") from error
    return length


def _too_large() -> NotTaken:
    most = ByteSize(settings.max_size).human_readable(decimal=False)
    return NotTaken(413, f"the file is larger than {most}, which is the most that is taken")
