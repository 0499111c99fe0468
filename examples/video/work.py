"""The workflow: what is done with a video, and in which order."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from pydantic import BaseModel

from carteiro import Emit, Retry, Router, Signature, Topic, exponential, group, set_progress, step
from carteiro.tasks.canvas import Canvas
from examples.video import shelf
from examples.video.media.jobs import Encode, Probe, Probed, Refused, Thumbnail
from examples.video.media.running import run
from examples.video.settings import settings

router = Router()

SIZES: Final = {"720p": 720, "480p": 480, "240p": 240}
"""Heights in pixels. The last one is made of every video, and nothing is made larger than it came."""
THUMBNAILS: Final = 4
THUMBNAIL_WIDTH: Final = 320
RETRY: Final = Retry(attempts=3, backoff=exponential(1), not_on=(Refused,))

ENCODES: Final = "encode"
"""A queue of their own, so that long encodes hold up no other task: `app.py` says how many a worker does at once."""


class Source(BaseModel):
    """A video as it came. `width` and `height` are in pixels, as it is seen."""

    video: str
    seconds: float
    width: int
    height: int
    stream: int
    tool: str


class Rendition(BaseModel):
    """What was made of it in one size."""

    size: str
    file: str
    width: int
    height: int
    bytes: int


class Thumbnails(BaseModel):
    files: list[str]


class Published(BaseModel):
    """A video that can be watched."""

    video: str
    renditions: list[Rendition]
    thumbnails: list[str]


class Failed(BaseModel):
    """Why a video cannot be watched, and which task said so."""

    task: str
    error: str


def workflow(video: str) -> Canvas:
    encodes: list[Signature] = [encode.s(size) for size in SIZES]
    made = probe.s(video) | group(*encodes, thumbnails.s()) | publish.s(video=video) | notify.s()
    return made.link_error(fail.s(video=video))


STEPS: Final = ("probe", *(f"encode {size}" for size in SIZES), "thumbnails", "publish", "notify")
"""Its tasks, as people are told of them."""


@router.task(retry=RETRY)
async def probe(video: str) -> Source:
    """See whether it is a video, and of what kind."""
    found = await run(Probe(str(shelf.file(video, "source"))), Probed)
    if found.seconds < 0.1:
        raise Refused("it is a picture, and does not move")
    return Source(video=video, **msgspec.structs.asdict(found))


@router.task(queue=ENCODES, retry=RETRY, timeout="4h")
async def encode(source: Source, size: str) -> Rendition | None:
    """Make one size; None if that would be larger than the source."""
    smallest = size == list(SIZES)[-1]
    if SIZES[size] > source.height and not smallest:
        return None
    width, height = _fitting(source, height=min(SIZES[size], source.height))
    target = shelf.file(source.video, f"{size}.mp4")
    if not target.exists():  # else it was made by a worker that could not say so any more
        with shelf.written(target) as path:
            original = str(shelf.file(source.video, "source"))
            job = Encode(original, str(path), source.stream, width, height, settings.preset)
            done = await run(job, float, told=lambda at: set_progress(at, source.seconds))
            if done < 0.9 * source.seconds - 1:
                raise Refused(f"it breaks off after {done:.1f} of {source.seconds:.1f} seconds")
    return Rendition(size=size, file=target.name, width=width, height=height, bytes=target.stat().st_size)


@router.task(retry=RETRY)
async def thumbnails(source: Source) -> Thumbnails:
    """Pictures from all over it. Each is a step: who takes over from a worker that died goes on after the last one."""
    files: list[str] = []
    for number in range(1, THUMBNAILS + 1):
        files.append(await step(f"thumbnail {number}", thumbnail, source, number))
        set_progress(number, THUMBNAILS)
    return Thumbnails(files=files)


async def thumbnail(source: Source, number: int) -> str:
    target = shelf.file(source.video, f"thumbnail-{number}.jpg")
    width, height = _fitting(source, height=round(THUMBNAIL_WIDTH * source.height / source.width))
    at = source.seconds * (number - 0.5) / THUMBNAILS
    with shelf.written(target) as path:
        original = str(shelf.file(source.video, "source"))
        await run(Thumbnail(original, str(path), source.stream, at, width, height), float)
    return target.name


@router.task(retry=RETRY)
def publish(made: list[Rendition | Thumbnails | None], video: str) -> Published:
    """From now on it can be watched."""
    published = Published(
        video=video,
        renditions=[one for one in made if isinstance(one, Rendition)],
        thumbnails=[name for one in made if isinstance(one, Thumbnails) for name in one.files],
    )
    shelf.put(video, "published.json", published)
    shelf.sweep(video)
    return published


@router.task(retry=RETRY)
async def notify(published: Published, ready: Annotated[Emit[Published], Topic("videos.ready")]) -> None:
    """Whoever wants to know hears of it as of any event, if and only if the run has come to its end."""
    ready(published)


@router.task(retry=RETRY)
def fail(failure: dict[str, Any], video: str) -> None:
    """Called once, whatever fails for good."""
    kind = str(failure["type"]).rpartition(":")[2]
    shelf.put(video, "failed.json", Failed(task=failure["task"], error=str(failure["error"]).removeprefix(f"{kind}: ")))
    shelf.sweep(video)


def _fitting(source: Source, height: int) -> tuple[int, int]:
    """Width and height as close to this height as encoders allow, which halve both."""
    return max(2, round(source.width * height / source.height / 2) * 2), max(2, round(height / 2) * 2)
