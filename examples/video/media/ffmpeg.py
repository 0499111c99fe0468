"""By the commands `ffmpeg` and `ffprobe`."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from examples.video.media.jobs import Encode, Probed, Refused, Thumbnail

QUIET = ("-hide_banner", "-loglevel", "error")


def is_there() -> bool:
    return shutil.which("ffmpeg") is not None and shutil.which("ffprobe") is not None


def probe(source: str) -> Probed:
    asked = ("-show_format", "-show_streams", "-print_format", "json")
    found = msgspec.json.decode(_said("ffprobe", *QUIET, *asked, _named(source)))
    for stream in found.get("streams", ()):
        if stream["codec_type"] == "video" and not stream["disposition"]["attached_pic"]:
            width, height = stream["width"], stream["height"]
            if _turned(stream):
                width, height = height, width
            lasts = found["format"].get("duration") or _last(source, stream["index"])
            return Probed(float(lasts), width, height, stream["index"], "ffmpeg")
    raise Refused("there are no pictures in it")


def encode(job: Encode) -> Iterator[float]:
    """Yields how many seconds are done."""
    command = (
        *("ffmpeg", *QUIET, "-nostdin", "-progress", "pipe:1", "-i", _named(job.source)),
        *("-map", f"0:{job.stream}", "-map", "0:a:0?", "-vf", f"scale={job.width}:{job.height}"),
        *("-c:v", "libx264", "-preset", job.preset, "-crf", "26", "-pix_fmt", "yuv420p"),
        *("-c:a", "aac", "-b:a", "128k", "-ac", "2", "-movflags", "+faststart", "-y", _named(job.target)),
    )
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            name, _, value = line.strip().partition("=")
            if name == "out_time_us" and value.isdecimal():  # it says N/A before the first frame
                yield int(value) / 1e6
    if process.returncode:
        raise Refused(f"ffmpeg cannot encode it (exit code {process.returncode})")


def thumbnail(job: Thumbnail) -> None:
    _said(
        *("ffmpeg", *QUIET, "-nostdin", "-ss", f"{job.at:.3f}", "-i", _named(job.source), "-map", f"0:{job.stream}"),
        *("-frames:v", "1", "-vf", f"scale={job.width}:{job.height}", "-q:v", "4", "-y", _named(job.target)),
    )
    if not Path(job.target).exists():  # it calls that a success
        raise Refused(f"there are no pictures in it after {job.at:.1f} s")


def _named(path: str) -> str:
    """So that no name of a file is taken for an address."""
    return f"file:{path}"


def _turned(stream: dict[str, Any]) -> bool:
    sides = (side.get("rotation", 0) for side in stream.get("side_data_list", ()))
    return any(round(rotation) % 180 for rotation in sides)


def _last(source: str, stream: int) -> float:
    """When the last packet begins, for files that do not say how long they are, as browsers record them."""
    asked = ("-select_streams", str(stream), "-show_entries", "packet=pts_time", "-print_format", "csv=p=0")
    times = _said("ffprobe", *QUIET, *asked, _named(source)).split()
    return max((float(time.strip(",")) for time in times if time[0].isdecimal()), default=0.0)


def _said(*command: str) -> str:
    """What it prints. Raises Refused with its last words."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        words = done.stderr.strip().rpartition(": ")[2] or f"{command[0]} ended with exit code {done.returncode}"
        raise Refused(f"it cannot be read: {words}")
    return done.stdout
