"""What is wrong with a file: where, and what to do. No value that may be a secret is ever part of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec


class Place(msgspec.Struct, frozen=True):
    """Line and column, both from 1."""

    line: int
    column: int


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong, with the way out."""

    place: Place
    text: str


def told(file: str, problems: Sequence[Problem]) -> list[str]:
    """A line for each, as editors and terminals know it: `queues.yaml:7:11: …`; each problem once, from the top."""
    found = sorted(set(problems), key=lambda problem: (problem.place.line, problem.place.column, problem.text))
    return [f"{file}:{one.place.line}:{one.place.column}: {one.text}" for one in found]


def nearest(name: str, known: Iterable[str]) -> str:
    """`: did you mean `port`?`, or nothing where no known name is near."""
    from difflib import get_close_matches  # for those who have erred only

    near = get_close_matches(name, list(known), n=1)
    return f": did you mean `{near[0]}`?" if near else ""
