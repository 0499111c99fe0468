"""A worker's side of the process that does a job."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from examples.video.media.jobs import Job, Refused, Said

ROOT = Path(__file__).resolve().parents[3]

T = TypeVar("T")


class Broken(Exception):
    """The process died. Another one may fare better."""


async def run(job: Job, answer: type[T], told: Callable[[float], None] = lambda at: None) -> T:
    """Have the job done and return its answer; `told` hears how many seconds of the video are done.

    A cancel kills the process. Raises Refused for a file that nothing can be made of, and Broken.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "examples.video.media", msgspec.json.encode(job).decode()),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))},
        stdin=asyncio.subprocess.PIPE,  # held open: it is how the process knows that its worker lives
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    said = Said()
    try:
        async for line in process.stdout:
            said = msgspec.json.decode(line, type=Said)
            if said.done is None and said.refused is None:
                told(said.at)
        await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with ffmpeg, which is its child
            await process.wait()
    if said.refused is not None:
        raise Refused(said.refused)
    if said.done is None:
        raise Broken(f"the process for {_named(job)} ended with exit code {process.returncode} and no answer")
    return msgspec.convert(said.done, answer)


def _named(job: Any) -> str:
    return type(job).__name__.lower()
