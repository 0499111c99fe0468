"""What Huey's consumer is pointed at: `huey_consumer benchmarks.contestants.huey_app.huey`, the file in BENCH_FILE."""

from __future__ import annotations

import os

from benchmarks.contestants.huey_tasks import Tasks
from benchmarks.contestants.orders import FILE_VARIABLE

tasks = Tasks(os.environ[FILE_VARIABLE], delays=int(os.environ.get("BENCH_COUNT", "0")))
huey = tasks.queue
