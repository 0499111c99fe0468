"""The app: its tasks and its listeners. `carteiro run examples.video.app:app` is a worker more."""

from __future__ import annotations

from carteiro import Carteiro
from examples.video import letters, work
from examples.video.settings import settings

app = Carteiro("video", lease=settings.lease)
app.include(work.router)
app.include(letters.router)
app.task_queue(work.ENCODES, concurrency=settings.encoders)
