"""A YAML file as a tree in which every value knows its place, with `${VARIABLES}` put in.

Values stay the text that they are: what a text means (a number, true or false, a length of time) is for the schema to
say. So a password of `0123` is not 83, and a queue called `no` is not false.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from carteiro.config.problems import Place, Problem
from carteiro.errors import ConfigurationError

if TYPE_CHECKING:
    import yaml

_VARIABLE: Final = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TAG: Final = "tag:yaml.org,2002:"
_DEEPEST, _MOST = 20, 50_000
"""A tree is no deeper and has no more values: aliases within aliases would grow without end."""


class Scalar(msgspec.Struct, frozen=True, eq=False):
    """A text, or None where there is none. `written` is how it may be shown: with the variables' names in it."""

    place: Place
    text: str | None
    written: str

    def __repr__(self) -> str:  # its text may be a secret, and a traceback may show what its frames hold
        return f"Scalar({self.place})"


class Entry(msgspec.Struct, frozen=True, eq=False):
    """A value, and the place of its key."""

    place: Place
    value: Node


class Table(msgspec.Struct, frozen=True, eq=False):
    """A YAML mapping."""

    place: Place
    entries: Mapping[str, Entry]


class Items(msgspec.Struct, frozen=True, eq=False):
    """A YAML sequence."""

    place: Place
    values: tuple[Node, ...]


Node = Scalar | Table | Items


def plain(node: Node) -> Any:
    """As dicts, lists and texts, without the keys that have no value."""
    if isinstance(node, Scalar):
        return node.text
    if isinstance(node, Items):
        return [plain(value) for value in node.values]
    values = {key: plain(entry.value) for key, entry in node.entries.items()}
    return {key: value for key, value in values.items() if value is not None}


def parse(text: str, environment: Mapping[str, str] = os.environ) -> tuple[Node | None, list[Problem]]:
    """The tree, None where there is none, and what is wrong.

    Raises ConfigurationError if PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError:
        raise ConfigurationError(
            "queues in a file need PyYAML, which is not installed: `pip install carteiro[config]`"
        ) from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        return None, [_syntax(error)]
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = Place(before.count("\n") + 1, error.position - before.rfind("\n"))
        return None, [Problem(place, "a character that YAML does not permit: write the file as plain UTF-8 text")]
    if root is None:
        return None, []
    grower = _Grower(environment)
    return grower.node(root), grower.problems


class _Grower:
    """From PyYAML's nodes to ours."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.problems: list[Problem] = []
        self._environment = environment
        self._count = 0

    def node(self, node: yaml.Node, depth: int = 0) -> Node:
        import yaml

        place = _place(node.start_mark)
        self._count += 1
        if depth > _DEEPEST or self._count > _MOST:
            if self._count <= _MOST + 1:
                self._count = _MOST + 1  # said once
                self._wrong(place, "values are nested without end here: write them without anchors and aliases")
            return Scalar(place, None, "")
        if isinstance(node, yaml.MappingNode):
            return Table(place, self._entries(node, depth))
        if isinstance(node, yaml.SequenceNode):
            return Items(place, tuple(self.node(value, depth + 1) for value in node.value))
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, place)

    def _entries(self, node: yaml.MappingNode, depth: int) -> dict[str, Entry]:
        import yaml

        entries: dict[str, Entry] = {}
        merged: list[Node] = []
        for key, value in node.value:
            place = _place(key.start_mark)
            if not isinstance(key, yaml.ScalarNode):
                self._wrong(place, "a key is one word, such as `name`: check the indentation and the braces")
            elif key.tag == f"{_TAG}merge":
                merged.append(self.node(value, depth + 1))
            elif key.value in entries:
                first = entries[key.value].place.line
                self._wrong(place, f"`{key.value}` is given twice (first in line {first}): drop one of them")
            else:
                entries[key.value] = Entry(place, self.node(value, depth + 1))
        for source in merged:
            for table in source.values if isinstance(source, Items) else (source,):
                for name, entry in table.entries.items() if isinstance(table, Table) else ():
                    entries.setdefault(name, entry)
        return entries

    def _scalar(self, node: yaml.ScalarNode, place: Place) -> Scalar:
        if not node.tag.startswith(_TAG):
            self._wrong(place, "a value cannot begin with `!`: put quotes around it")
        if node.tag == f"{_TAG}null":
            return Scalar(place, None, "")
        text = "".join(self._pieces(node.value, place))
        written = _VARIABLE.sub(lambda found: f"${{{(found[1] or '').partition(':-')[0]}}}", node.value)
        if not text and node.style is None:
            return Scalar(place, None, written)  # `key: ${VARIABLE:-}` is as empty as `key:`
        return Scalar(place, text, written)

    def _pieces(self, text: str, place: Place) -> Iterator[str]:
        """The text between variables, and what these stand for."""
        position = 0
        for found in _VARIABLE.finditer(text):
            yield text[position : found.start()]
            position = found.end()
            yield "${" if found[0] == "$${" else self._variable(found[1], bool(found[2]), place)
        yield text[position:]

    def _variable(self, inner: str, closed: bool, place: Place) -> str:
        name, default_follows, default = inner.partition(":-")
        if not closed or not _NAME.fullmatch(name):
            how = "names no variable" if closed else "has no `}`"
            self._wrong(place, f"a `${{` here {how}: write `${{NAME}}` or `${{NAME:-default}}`, and `$${{` for itself")
            return ""
        value = self._environment.get(name)
        if default_follows:
            return value or default
        if value is None:
            self._wrong(
                place, f"the environment variable {name} is not set: set it, or write `${{{name}:-default}}` here"
            )
        return value or ""

    def _wrong(self, place: Place, text: str) -> None:
        self.problems.append(Problem(place, text))


def _place(mark: yaml.Mark | None) -> Place:
    return Place(1, 1) if mark is None else Place(mark.line + 1, mark.column + 1)


# PyYAML's own words quote what they stumble over, and that may be a part of a password.
_SYNTAX: Final = (
    ("character '\\t'", "a tab cannot indent: use spaces"),
    ("cannot start any token", "a value cannot begin with this character: put quotes around it"),
    ("undefined alias", "a value cannot begin with `*` unless it names an anchor: put quotes around it"),
    ("unknown escape", "`\\` within double quotes begins an escape: take single quotes, or write `\\\\`"),
    ("mapping values are not allowed", "no `key:` can stand here: check the indentation, or quote the text"),
    ("expected ':'", "this is no `key: value`: check the indentation, the `:` and the space after it"),
    ("end of stream", "a quote or a bracket is opened here and never closed"),
    ("expected ',' or", "a `[` or `{` is not closed: put `]` or `}` at its end, or quotes around the text"),
    ("<block end>", "this does not fit to what stands above: check the indentation and the quotes"),
    ("another document", "a second document begins here: keep all the queues in one, without `---`"),
)


def _syntax(error: yaml.MarkedYAMLError) -> Problem:
    said = error.problem or ""
    text = next((ours for theirs, ours in _SYNTAX if theirs in said), "this is no YAML: check quotes and indentation")
    never_closed = "end of stream" in said and error.context_mark is not None
    return Problem(_place(error.context_mark if never_closed else error.problem_mark), text)
