"""What a system is to the measurements: a place to run on, contestants, and bounds."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec


class Role(enum.Enum):
    OURS = enum.auto()
    BARE = enum.auto()
    CALLS = enum.auto()
    """The bare loop's calls without decoding and handler."""
    PEER = enum.auto()


class Contestant(msgspec.Struct, frozen=True):
    """Someone who is measured: a module under `contestants/` that publishes, and a command that starts one worker.

    `handles` and `publishes` (by mode, see `contestants/publishing.py`) are a second's worth, roughly: what each is
    given to do is a multiple of it, so that nobody takes longer than another. Modes without one are not measured.
    `requires` are the packages of an environment of its own; who has none runs with this interpreter. `waits` is
    whether a worker goes on when there is nothing to do. `settings` are variables that its worker finds.
    `environment` is the name of its environment, if that is not the module's. `composes`: it has chains and chords.
    """

    name: str
    module: str
    worker: Sequence[str]
    role: Role
    handles: int
    publishes: Mapping[str, int]
    requires: Sequence[str] = ()
    waits: bool = True
    settings: Mapping[str, str] = {}
    environment: str = ""
    composes: bool = False


class Bounds(msgspec.Struct, frozen=True):
    """DESIGN's figures: ratios, milliseconds and megabytes. `p50_over_peer` is against the best peer's median.

    `composed_over_peer` is for chains and chords. `backlog` is how many messages wait in a long backlog.
    """

    handled_over_peer: float = 10
    handled_over_bare: float = 0.5
    composed_over_peer: float | None = None
    one_over_bare: float = 0.8
    bulk_over_peer: float | None = 10
    p50: float | None = None
    p99: float | None = None
    p50_over_peer: float | None = None
    memory: float | None = None
    backlog: int = 1_000_000


class System(Protocol):
    """A context: what it needs is running inside it."""

    @property
    def title(self) -> str: ...

    @property
    def place(self) -> str:
        """What two workers share, in a sentence."""
        ...

    @property
    def safety(self) -> str:
        """How safe a message is once it is published, for all who are measured here."""
        ...

    @property
    def measurements(self) -> Sequence[str]:
        """The names of those that are made on it, in this order."""
        ...

    @property
    def contestants(self) -> Sequence[Contestant]: ...

    @property
    def bounds(self) -> Bounds: ...

    def __enter__(self) -> System: ...

    def __exit__(self, *error: object) -> None: ...

    def fresh(self) -> AbstractContextManager[str]:
        """The URL of an empty one; several may be open."""
        ...

    def describe(self) -> Mapping[str, str]:
        """Which versions figures belong to."""
        ...


MESSAGES = ("handled", "workers", "publishing", "latency", "backlog", "memory", "startup", "idle")
"""What is measured wherever messages are."""


def carteiro(handles: int, publishes: Mapping[str, int]) -> Contestant:
    """The same program on every system."""
    command = ("carteiro", "run", "benchmarks.contestants.carteiro_app:app", "--json")
    return Contestant("carteiro", "carteiro_app", command, Role.OURS, handles, publishes)


def huey(handles: int, publishes: Mapping[str, int]) -> Contestant:
    """Quiet: no line for a task."""
    command = ("huey_consumer", "benchmarks.contestants.huey_app.huey", "-q")
    return Contestant("Huey", "huey_app", command, Role.PEER, handles, publishes)


def peer(
    name: str, command: str, handles: int, one: int, many: int, *requires: str, module: str = "", **settings: str
) -> Contestant:
    """`handles`, `one` by one and in bulk (`many`) are what it does in a second, roughly.

    Without `module` it is named for the peer. `{module}` in the command is its full name.
    """
    module = module or f"{name.lower()}_app"
    worker = command.format(module=f"benchmarks.contestants.{module}").split()
    publishes = {"one": one, "many": many}
    return Contestant(name, module, worker, Role.PEER, handles, publishes, requires, settings=settings)
