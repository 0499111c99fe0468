"""Schedules: on each of the systems that keep them by themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from benchmarks.systems.base import Bounds, Contestant, System
from benchmarks.systems.redis import Redis
from benchmarks.systems.sqlite import SQLite


class Schedules:
    title = "Schedules"
    place = SQLite.place
    safety = f"SQLite: {SQLite.safety} Redis: {Redis.safety}"
    measurements = ("lateness", "far ahead", "year")
    contestants: Sequence[Contestant] = ()
    bounds = Bounds(p99=50)

    def __enter__(self) -> Schedules:
        with contextlib.ExitStack() as stack:
            systems: Sequence[System] = (SQLite(), Redis())
            self.places = {one.title: stack.enter_context(one) for one in systems}
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def fresh(self) -> Iterator[str]:
        with self.places[SQLite.title].fresh() as url:
            yield url

    def describe(self) -> Mapping[str, str]:
        found = {name: value for one in self.places.values() for name, value in one.describe().items()}
        return {name: value for name, value in found.items() if name != "peers"}
