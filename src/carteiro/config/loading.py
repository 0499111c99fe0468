"""From a file to its queues, or to all that is wrong with it at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from carteiro.config import document, systems
from carteiro.config.checking import Checker
from carteiro.config.document import Entry, Items, Node, Scalar, Table
from carteiro.config.options import QueueOptions, Service
from carteiro.config.problems import Place, nearest, told
from carteiro.config.queues import Queue, Queues, named_brokers
from carteiro.errors import ConfigurationError

_LISTS: Final = ("queues", "defaults")
_FALSE: Final = frozenset({"false", "no", "off", "0", "f", "n"})
"""As pydantic reads them."""
_NOWHERE: Final = Place(1, 1)


def load(path: str | os.PathLike[str]) -> Queues:
    """Raises ConfigurationError that names each thing that is wrong, with file, line and the way out.

    It is raised where no frame holds a value of the file any more: those may be secrets.
    """
    queues, problems = read(path)
    if queues is None:
        raise ConfigurationError("\n".join(problems))
    return queues


def read(path: str | os.PathLike[str]) -> tuple[Queues | None, list[str]]:
    """The queues or, a line for each, what is wrong. Raises ConfigurationError for a file that cannot be read."""
    file = os.fspath(path)
    tree, problems = document.parse(_text_of(file))
    if tree is None and problems:
        return None, told(file, problems)
    reader = _Reader(file)
    queues = reader.read(tree)
    problems += reader.checker.problems
    return (None, told(file, problems)) if problems else (queues, [])


def _text_of(file: str) -> str:
    try:
        with open(file, encoding="utf-8-sig") as opened:
            return opened.read()
    except UnicodeDecodeError:
        problem = "is not written in UTF-8: save it so"
    except FileNotFoundError:
        problem = f"is not there (the working directory is {os.getcwd()}): name the file that lists the queues"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    raise ConfigurationError(f"`{file}` {problem}")


class _Reader:
    """One reading of one file."""

    def __init__(self, file: str) -> None:
        self.checker = Checker(more=_LISTS)
        self._file = file
        self._names: dict[str, Place] = {}
        self._found: list[tuple[Place, str, systems.Queue]] = []

    def read(self, tree: Node | None) -> Queues | None:
        """None where something is wrong."""
        if not isinstance(tree, Table):
            place = _NOWHERE if tree is None else tree.place
            self.checker.wrong(place, "the file begins with `queues:`, and below it `- name: …` for each queue")
            return None
        own = {key: entry for key, entry in tree.entries.items() if key not in _LISTS}
        service = self.checker.check(Service, Table(tree.place, own), lambda key: "")
        defaults = self._defaults(tree.entries.get("defaults"))
        for node in self._listed(tree):
            self._add(node, defaults)
        if service is None or self.checker.problems:
            return None
        store = None if service.store is None else service.store.get_secret_value()
        brokers = named_brokers((type, queue.url()) for _, type, queue in self._found)
        names = {url: name for name, url in brokers.items()}
        queues = {
            queue.name: Queue(
                name=queue.name,
                type=type,
                place=f"{self._file}:{place.line}",
                broker=names[queue.url()],
                consumes=queue.enable_consumer,
                publishes=queue.enable_publisher,
                policies=queue.policies(),
            )
            for place, type, queue in self._found
        }
        return Queues(self._file, service.app, store, brokers, queues)

    def _listed(self, tree: Table) -> Sequence[Node]:
        entry = tree.entries.get("queues")
        if entry is None:
            self.checker.wrong(tree.place, "there is no `queues:`, with `- name: …` below it for each queue")
        elif not isinstance(entry.value, Items) or not entry.value.values:
            self.checker.wrong(entry.place, "`queues` is a list: write `- name: …` below it for each queue")
        else:
            return entry.value.values
        return ()

    def _defaults(self, entry: Entry | None) -> Table:
        """What holds for all queues that do not say it themselves. A key that none has is said here, and once."""
        if entry is None or _is_empty(entry):
            return Table(_NOWHERE, {})
        table = entry.value
        if not isinstance(table, Table):
            self.checker.wrong(entry.place, "`defaults` has the keys of a queue, such as `type: rabbitmq`")
            return Table(_NOWHERE, {})
        kind = _text(table.entries.get("type"))
        model = QueueOptions if kind is None else systems.system(kind)
        if model is None:
            return table  # every queue of that type says so
        known = tuple(key for key in model.model_fields if key != "name")
        for key, one in table.entries.items():
            if key == "name":
                self.checker.wrong(one.place, "`name` in `defaults` is no default: each queue has its own")
            elif key not in known and kind is None and systems.has_key(key):
                self.checker.wrong(one.place, f"`{key}` in `defaults` needs `type: …` beside it: it is for one system")
            elif key not in known:
                self.checker.unknown_key(one.place, key, " in `defaults`", known)
        return Table(table.place, {key: one for key, one in table.entries.items() if key in known})

    def _add(self, node: Node, defaults: Table) -> None:
        """A queue with the defaults that it does not say itself; an empty key undoes the default."""
        if not isinstance(node, Table):
            self.checker.wrong(node.place, "a queue has keys: write `- name: user_channel`, and the others below it")
            return
        name = _text(node.entries.get("name"))
        if name is not None:
            self._check_name(name, node.place)
        queue = " of a queue" if name is None else f" of queue `{name}`"
        own, common = node.entries, defaults.entries
        alike = _text(own.get("type")) in (None, _text(common.get("type")))
        taken = {key: one for key, one in common.items() if alike or key in QueueOptions.model_fields}
        if "dlq" not in own and (_text(own.get("enable_dlq")) or "").lower() in _FALSE:
            taken.pop("dlq", None)  # there are no dead letters for it
        empty = [key for key, one in own.items() if _is_empty(one)]
        merged = {key: one for key, one in {**taken, **own}.items() if key not in empty}

        def whose(key: str) -> str:
            return " in `defaults`" if key in merged and merged[key] is common.get(key) else queue

        kind = _text(merged.get("type"))
        model = None if kind is None else systems.system(kind)
        if kind is None:
            self.checker.wrong(node.place, f"the type{queue} is not said: write `type: rabbitmq`, or another system")
        elif model is None:
            known = sorted(systems.types())
            among = nearest(kind, known) or f": there are {', '.join(known)}"
            self.checker.wrong(merged["type"].place, f"`type: {kind}`{whose('type')} is no system{among}")
        else:
            for key in empty:
                if key not in model.model_fields:  # no default that it could undo
                    self.checker.unknown_key(own[key].place, key, queue, tuple(model.model_fields))
            checked = self.checker.check(model, Table(node.place, merged), whose)
            if checked is not None:
                self._found.append((node.place, kind, checked))

    def _check_name(self, name: str, place: Place) -> None:
        first = self._names.setdefault(name, place)
        if first is not place:
            self.checker.wrong(place, f"queue `{name}` is here twice (first in line {first.line}): rename or drop one")


def _is_empty(entry: Entry) -> bool:
    return isinstance(entry.value, Scalar) and entry.value.text is None


def _text(entry: Entry | None) -> str | None:
    return entry.value.text if entry is not None and isinstance(entry.value, Scalar) else None
