"""An app with BENCH_SUBSCRIPTIONS handlers of plain text, and nothing to do."""

from __future__ import annotations

import os

from benchmarks.contestants.orders import GROUP
from carteiro import Carteiro

app = Carteiro(GROUP)


async def handle(text: str) -> None: ...


for number in range(int(os.environ.get("BENCH_SUBSCRIPTIONS", "1"))):
    app.subscriber(f"topic.{number}")(handle)
