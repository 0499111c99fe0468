"""The process that does one job: `python -m examples.video.media JOB`. It ends when its standard input does.

That is the worker's end of a pipe, which the kernel closes however the worker dies: so nobody goes on encoding for a
worker that is gone.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from time import monotonic
from typing import Any, Final

import msgspec

from examples.video.disk import sync
from examples.video.media import ffmpeg
from examples.video.media.jobs import Encode, Job, Probe, Refused, Said, Thumbnail

OFTEN: Final = 0.2
"""Seconds between two words on how far it is."""


def main(job: Job) -> int:
    threading.Thread(target=_end_with_the_worker, daemon=True).start()
    if ffmpeg.is_there():
        tool: Any = ffmpeg
    else:
        from examples.video.media import pyav

        tool = pyav
    try:
        _say(Said(done=_done(tool, job)))
    except Refused as refused:
        _say(Said(refused=str(refused)))
    return 0


def _done(tool: Any, job: Job) -> object:
    match job:
        case Probe():
            return tool.probe(job.source)
        case Thumbnail():
            tool.thumbnail(job)
            sync(job.target)
            return job.at
        case Encode():
            at = said = 0.0
            for at in tool.encode(job):
                if monotonic() - said >= OFTEN:
                    _say(Said(at=at))
                    said = monotonic()
            sync(job.target)
            return at


def _say(said: Said) -> None:
    print(msgspec.json.encode(said).decode(), flush=True)


def _end_with_the_worker() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.killpg(0, signal.SIGKILL)  # and ffmpeg, if it is that


if __name__ == "__main__":
    sys.exit(main(msgspec.json.decode(sys.argv[1], type=Job)))
