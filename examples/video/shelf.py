"""Where videos are: a folder each, in which a file is there whole or not at all.

    3f0c…/  upload.json  run  source        what came, and the run that works on it
            720p.mp4 …   thumbnail-1.jpg …  what was made of it
            published.json | failed.json    how it ended
            letter.eml                      to whom it may concern

Nothing is changed once it is there. So a task that a killed worker had done, but not settled, finds its file and has
nothing left to do; and two who make the same file, as after a freeze, cannot spoil it for one another.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from examples.video.disk import sync
from examples.video.settings import settings

M = TypeVar("M", bound=BaseModel)


def folder(video: str) -> Path:
    return settings.folder / video


def file(video: str, name: str) -> Path:
    return folder(video) / name


def add() -> str:
    """Make the folder of a new video and return its id."""
    video = secrets.token_hex(6)
    folder(video).mkdir(parents=True)
    return video


def remove(video: str) -> None:
    shutil.rmtree(folder(video), ignore_errors=True)


def videos() -> list[str]:
    """All that there are, the newest first."""
    found = settings.folder.glob("*/upload.json")
    return [path.parent.name for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]


@contextmanager
def written(target: Path) -> Iterator[Path]:
    """A path to write to. What is there when the block ends well becomes `target`, and is safe on the disk."""
    unfinished = target.with_name(f".{secrets.token_hex(4)}-{target.name}")  # keeps its suffix, which names its format
    try:
        yield unfinished
        sync(unfinished)
        unfinished.replace(target)
        sync(target.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def sweep(video: str) -> None:
    """Remove what killed workers have left unfinished of the video."""
    for path in folder(video).glob(".*"):
        if path.suffix in (".mp4", ".jpg"):  # and not what the web service is just writing
            path.unlink(missing_ok=True)


def put(video: str, name: str, value: BaseModel | str) -> None:
    with written(file(video, name)) as path:
        path.write_text(value if isinstance(value, str) else value.model_dump_json())


def get(video: str, name: str, kind: type[M]) -> M | None:
    """None if it is not there."""
    text = read(video, name)
    return None if text is None else kind.model_validate_json(text)


def read(video: str, name: str) -> str | None:
    try:
        return file(video, name).read_text()
    except FileNotFoundError:
        return None
