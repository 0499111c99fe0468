"""What a user writes in a handler's signature to say where a parameter comes from.

A marker stands in `Annotated[...]` or as a parameter's default. The public names are functions that return `Any`, so
that `session: Session = Depends(session)` passes a type checker; the classes they make are what the compiler looks for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from carteiro.message import Native


@dataclass(frozen=True, slots=True, eq=False)
class DependsMarker:
    dependency: Callable[..., Any] | None
    use_cache: bool


@dataclass(frozen=True, slots=True)
class PathMarker:
    name: str | None


@dataclass(frozen=True, slots=True)
class HeaderMarker:
    name: str | None


@dataclass(frozen=True, slots=True)
class BodyMarker:
    embed: bool | None


@dataclass(frozen=True, slots=True)
class TopicMarker:
    to: str | Native
    broker: str | None = None


Marker = DependsMarker | PathMarker | HeaderMarker | BodyMarker | TopicMarker


def Depends(dependency: Callable[..., Any] | None = None, *, use_cache: bool = True) -> Any:
    """The parameter is what `dependency` returns or yields; without one, what calling the annotation returns.

    A function, async or not, or a generator, which is resumed when the handler has ended and sees its exception. It may
    have parameters of its own, marked in the same way. With `use_cache` it is called once for each message, however
    many parameters name it.
    """
    return DependsMarker(dependency, use_cache)


def Path(name: str | None = None) -> Any:
    """The parameter is a word captured from the topic, by its own name or `name`, converted to its type."""
    return PathMarker(name)


def Header(name: str | None = None) -> Any:
    """The parameter is a header, converted to its type. `name` is by default the parameter's, with `-` for `_`."""
    return HeaderMarker(name)


def Body(embed: bool | None = None) -> Any:
    """The parameter comes from the body, which needs no saying, and `embed` says how.

    True: it is the body's field of this name. False: it is the whole body. None: the whole body where it is the only
    such parameter, a field where there are several.
    """
    return BodyMarker(embed)


def Topic(name: str | Native, *, broker: str | None = None) -> Any:
    """The topic of an `Emit`: `Annotated[Emit[Reserved], Topic("stock.released")]`, or the broker's own object.

    `broker` is the name of one of the app's brokers; by default the one on which the topic lives.
    """
    return TopicMarker(name, broker)


BARE: dict[Any, Marker] = {Path: PathMarker(None), Header: HeaderMarker(None), Body: BodyMarker(None)}
"""`Annotated[str, Path]` without the brackets means what it says."""
