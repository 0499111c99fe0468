"""Every measurement by its name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.bench import Measurement
from benchmarks.measurements import (
    backlog,
    composed,
    footprint,
    handled,
    idle,
    large_chord,
    latency,
    publishing,
    schedules,
    sending,
    startup,
    tasks,
    trips,
    workers,
)

MEASUREMENTS: Mapping[str, Measurement] = {
    "handled": handled.measure,
    "workers": workers.measure,
    "publishing": publishing.measure,
    "latency": latency.measure,
    "backlog": backlog.measure,
    "memory": footprint.measure,
    "startup": startup.measure,
    "idle": idle.measure,
    "tasks": tasks.measure,
    "sending": sending.measure,
    "trips": trips.measure,
    "chains": composed.chains,
    "chords": composed.chords,
    "large chord": large_chord.measure,
    "lateness": schedules.lateness,
    "far ahead": schedules.far_ahead,
    "year": schedules.year,
}
