"""How a video stands: what its folder says, and how far the run is that works on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal

from pydantic import BaseModel

from carteiro.ports.broker import Inspector
from carteiro.tasks.inspecting import Inspection
from carteiro.tasks.records import OVER, node_id, progress_key, running_key, task_key
from carteiro.tasks.runs import NodeView, RunDetails, RunInspection
from examples.video import shelf
from examples.video.app import app
from examples.video.upload import Upload
from examples.video.work import STEPS, Failed, Published, Rendition

State = Literal["uploaded", "processing", "published", "failed", "cancelled"]


class Step(BaseModel):
    """One task of the run. `done` is from 0 to 1."""

    name: str
    status: str
    done: float
    attempt: int


class Video(BaseModel):
    """`at` is when it was uploaded, in seconds since the epoch; `bytes` is how long the upload was."""

    id: str
    name: str
    at: float
    bytes: int
    state: State
    error: str | None = None
    steps: list[Step] = []
    renditions: list[Rendition] = []
    thumbnails: list[str] = []
    over: bool = False
    """Nothing about it will change any more."""


async def standing(id: str) -> Video | None:
    """None if there is no such video."""
    upload = shelf.get(id, "upload.json", Upload)
    if upload is None:
        return None
    name = shelf.read(id, "run")
    run = None if name is None else await _inspection().run(name)
    return _video(upload, run)


async def changes(id: str) -> AsyncIterator[Video]:
    """How it stands, now and whenever that changes, until it changes no more. The store tells; nothing is polled."""
    store = app.connection.store
    assert store is not None
    run = shelf.read(id, "run")
    count = len(STEPS) + 1  # and `fail`
    nodes = [] if run is None else [node_id(run, number) for number in range(count)]
    keys = [key(node) for node in nodes for key in (task_key, running_key, progress_key)]
    shown = None
    while True:
        entries = await store.get(keys)  # before it is looked at: what changes meanwhile is not missed
        video = await standing(id)
        if video is None:
            return
        if video != shown:
            yield video
            shown = video
        if video.over or not keys:
            return
        await store.changed({key: entries[key].version if key in entries else 0 for key in keys})


def _inspection() -> RunInspection:
    connection = app.connection
    assert connection.store is not None
    assert isinstance(connection.broker, Inspector)
    return RunInspection(Inspection(connection.store, connection.broker, app.clock))


def _video(upload: Upload, run: RunDetails | None) -> Video:
    video = Video(
        id=upload.id,
        name=upload.name,
        at=upload.at,
        bytes=upload.bytes,
        state="uploaded" if run is None else "processing",
    )
    published = shelf.get(upload.id, "published.json", Published)
    failed = shelf.get(upload.id, "failed.json", Failed)
    if published is not None:
        video.state, video.renditions, video.thumbnails = "published", published.renditions, published.thumbnails
        video.over = run is None or run.run.status in OVER
    elif failed is not None:
        video.state, video.error, video.over = "failed", f"{failed.task}: {failed.error}", True
    elif run is not None and run.run.status == "cancelled":
        video.state, video.over = "cancelled", True
    if run is not None:
        # Node 0 is a run's last one, and those of error callbacks come after all others.
        nodes = [run.nodes[number] for number in (*range(1, len(STEPS)), 0)]
        stopped = run.run.status in OVER
        video.steps = [_step(name, node, stopped) for name, node in zip(STEPS, nodes, strict=True)]
    return video


def _step(name: str, node: NodeView, stopped: bool) -> Step:
    done = 0.0
    status = "cancelled" if stopped and node.status == "running" else node.status  # its worker is just being told
    if node.status == "succeeded":
        done = 1.0
    elif node.progress is not None and node.progress.total:
        done = min(1.0, node.progress.done / node.progress.total)
    return Step(name=name, status=status, done=round(done, 3), attempt=node.attempt)
