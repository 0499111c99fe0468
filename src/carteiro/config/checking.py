"""A table of the file against its model: what does not fit, at its place and in our own words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from carteiro.config.document import Entry, Items, Node, Scalar, Table, plain
from carteiro.config.options import Backoff, DeadLetters, Part, Retry
from carteiro.config.problems import Place, Problem, nearest

M = TypeVar("M", bound=Part)

_PARTS: Final[Mapping[str, type[Part]]] = {"retry": Retry, "backoff": Backoff, "dlq": DeadLetters}
_SECRETS: Final = frozenset({"broker_url", "password", "ssl_password", "store"})
_LONGEST: Final = 40
_HOW: Final = {
    "int_parsing": "is no whole number",
    "float_parsing": "is no number",
    "bool_parsing": "is neither true nor false",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "is none of {expected}",
    "ours": "{text}",
}


class Checker:
    """Checks tables, and gathers what is wrong with them. `more` are keys of the top that its model does not have."""

    def __init__(self, more: tuple[str, ...] = ()) -> None:
        self.problems: list[Problem] = []
        self._more = more

    def wrong(self, place: Place, text: str) -> None:
        self.problems.append(Problem(place, text))

    def check(self, model: type[M], table: Table, whose: Callable[[str], str]) -> M | None:
        """The model of this table, or None. `whose` says of a key of the table whose it is, as ` of queue `x``."""
        try:
            return model.model_validate(plain(table))
        except ValidationError as error:
            for one in error.errors(include_url=False, include_input=False):
                self._explain(one, model, table, whose)
        return None

    def unknown_key(self, place: Place, dotted: str, whose: str, known: tuple[str, ...]) -> None:
        key = dotted.rpartition(".")[2]
        among = nearest(key, known) or f": there are {', '.join(known)}"
        self.wrong(place, f"`{dotted}`{whose} is no key{among}")

    def _explain(self, error: ErrorDetails, model: type[Part], table: Table, whose: Callable[[str], str]) -> None:
        path = [str(step) for step in error["loc"]]
        context = error.get("ctx", {})
        if context.get("key"):
            path.append(context["key"])
        dotted, key = ".".join(path), path[-1]
        entry, holder = _find(table, path)
        owner = whose(path[0])
        kind = error["type"]
        if kind == "missing":
            inside = f"`{'.'.join(path[:-1])}`{owner}" if path[1:] else owner.removeprefix(" of ").removeprefix(" in ")
            self.wrong(holder, f"{inside} has no `{key}`{_as_in(path[-2]) if path[1:] else f': write `{key}: …`'}")
        elif kind == "extra_forbidden":
            inner = _PARTS[path[-2]] if path[1:] else model
            known = tuple(inner.model_fields) + (() if path[1:] else self._more)
            self.unknown_key(holder if entry is None else entry.place, dotted, owner, known)
        else:
            place = holder if entry is None else entry.place
            value = None if entry is None else entry.value
            self.wrong(place, _unfit(dotted, key, owner, value, kind, context))


def _unfit(dotted: str, key: str, whose: str, value: Node | None, kind: str, context: Mapping[str, object]) -> str:
    if key in _PARTS and not isinstance(value, Table):
        return f"`{dotted}`{whose} has keys of its own{_as_in(key)}"
    if isinstance(value, Table | Items) and kind != "ours":
        return f"`{dotted}`{whose} is one value: write it as `{key}: …`"
    how = _HOW.get(kind, "does not fit").format(**context)
    if kind == "literal_error" and isinstance(value, Scalar):
        how = how.replace("'", "`") + nearest(value.written, how.split("'")[1::2])
    return f"{_shown(dotted, key, value)}{whose} {how}"


def _shown(dotted: str, key: str, value: Node | None) -> str:
    """The key with what was written for it, unless that is nobody's business."""
    if key in _SECRETS or not isinstance(value, Scalar):
        return f"`{dotted}`"
    written = value.written if len(value.written) <= _LONGEST else f"{value.written[:_LONGEST]}…"
    return f"`{dotted}: {written}`" if written.isprintable() else f"`{dotted}`"


def _as_in(part: str) -> str:
    return f": write it as `{_PARTS[part].example}`"


def _find(table: Table, path: list[str]) -> tuple[Entry | None, Place]:
    """The entry at the end of the path, if it is there, and the place of what holds it."""
    node: Node = table
    place = table.place
    entry: Entry | None = None
    for step in path:
        entry = node.entries.get(step) if isinstance(node, Table) else None
        if entry is None:
            return None, place
        node, place = entry.value, entry.place
    return entry, place
