"""What a measurement is given, and what it gives back."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from benchmarks.processes import Failed
from benchmarks.systems.base import Contestant, Role, System

T = TypeVar("T")


class Figure(msgspec.Struct, frozen=True):
    """One number, held against DESIGN's bound where there is one: `at_least` or `at_most`."""

    name: str
    value: float
    unit: str = "×"
    at_least: float | None = None
    at_most: float | None = None

    @property
    def holds(self) -> bool | None:
        if self.at_least is not None:
            return self.value >= self.at_least
        return None if self.at_most is None else self.value <= self.at_most


class Result(msgspec.Struct, frozen=True):
    """A table of what was measured, and the figures made from it. `how` says what was done, in a sentence or two."""

    title: str
    how: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    figures: Sequence[Figure]
    raw: Mapping[str, Any] = {}


class Bench:
    """One run on one system: who takes part, how much of everything, and where progress is shown."""

    def __init__(
        self,
        system: System,
        contestants: Sequence[Contestant],
        *,
        quick: bool,
        rounds: int | None,
        say: Callable[[str], None],
    ) -> None:
        self.system = system
        self.contestants = contestants
        self.quick = quick
        self.rounds = rounds or (1 if quick else 3)
        self.say = say

    def size(self, full: float) -> int:
        """How many messages: a fifth of them in a quick run."""
        return max(1, int(full / 5 if self.quick else full))

    def one(self, role: Role) -> Contestant:
        return next(contestant for contestant in self.contestants if contestant.role is role)

    def peers(self) -> list[str]:
        return [contestant.name for contestant in self.contestants if contestant.role is Role.PEER]

    def in_turns(self, contestants: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
        """Each contestant once a round, another one first each time, so that other load meets all of them alike."""
        results: dict[str, list[T]] = {name: [] for name in contestants}
        names = list(contestants)
        for number in range(self.rounds):
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                self.say(f"round {number + 1} of {self.rounds}: {name}")
                try:
                    results[name].append(contestants[name]())
                except Failed:  # once: a peer that stumbles now and then must not end a run of a quarter of an hour
                    self.say(f"round {number + 1} of {self.rounds}: {name}, once more")
                    results[name].append(contestants[name]())
        return results


Measurement = Callable[[Bench], Result]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios of each round."""
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def best(rates: Mapping[str, Sequence[float]]) -> tuple[str, list[float]]:
    """Who has the highest median, and the highest of each round, whoever's it was."""
    name = max(rates, key=lambda name: statistics.median(rates[name]))
    return name, [max(values) for values in zip(*rates.values(), strict=True)]


def rates(values: Sequence[float]) -> list[str]:
    """Median and best, as a table shows them."""
    return [f"{statistics.median(values):,.0f}", f"{max(values):,.0f}"]
