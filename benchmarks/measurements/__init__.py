"""Every measurement by its name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.bench import Measurement
from benchmarks.measurements import backlog, footprint, handled, idle, latency, publishing, startup, workers

MEASUREMENTS: Mapping[str, Measurement] = {
    "handled": handled.measure,
    "workers": workers.measure,
    "publishing": publishing.measure,
    "latency": latency.measure,
    "backlog": backlog.measure,
    "memory": footprint.measure,
    "startup": startup.measure,
    "idle": idle.measure,
}
