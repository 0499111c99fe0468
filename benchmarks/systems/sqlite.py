"""SQLite: a file each, on the disk that temporary files are on."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.systems.base import MESSAGES, Bounds, Contestant, Role, carteiro, huey

BARE = ("python", "-m", "benchmarks.contestants.bare_worker")


class SQLite:
    title = "SQLite"
    place = "A file has one writer at a time, so what a second process adds is its decoding and handling."
    safety = "`synchronous=FULL` for all: each commit waits for the disk."
    measurements = MESSAGES
    contestants = (
        carteiro(80_000, {"one": 3_000, "concurrent": 70_000, "many": 160_000}),
        Contestant(
            "bare loop", "bare_sqlite", (*BARE, "handle"), Role.BARE, 95_000,
            {"one": 4_500, "blocking": 7_000, "concurrent": 5_000, "many": 200_000}, waits=False,
        ),
        Contestant("its calls alone", "bare_sqlite", (*BARE, "calls"), Role.CALLS, 120_000, {}, waits=False),
        huey(4_000, {"one": 7_000, "many": 7_000}),
    )  # fmt: skip
    bounds = Bounds(p50=3, memory=45)

    def __enter__(self) -> SQLite:
        return self

    def __exit__(self, *error: object) -> None: ...

    @contextlib.contextmanager
    def fresh(self) -> Iterator[str]:
        with tempfile.TemporaryDirectory(prefix="carteiro-bench-") as folder:
            yield f"sqlite:///{Path(folder) / 'bench.db'}"

    def describe(self) -> Mapping[str, str]:
        return {"sqlite": sqlite3.sqlite_version}
