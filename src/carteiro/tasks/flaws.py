"""Errors that travel: from where a task failed to who asks for its result, without pickle.

What is kept is the exception's type by name, its arguments and attributes where JSON can hold them, its text and its
traceback. Who reads it gets the exception itself where the type is known there, that is, where its module is imported
already (nothing is imported because a message says so), and where it then says the same. Otherwise it is a `TaskFailed`
with the same text. Either has the remote traceback as its cause.
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from carteiro.engine.failures import describe
from carteiro.errors import TaskFailed
from carteiro.handlers.codecs import encode
from carteiro.tasks.records import Flaw

FAILED = "$failed"
"""The one key of what stands for a failure within a list of results, and of what an error callback gets."""


class RemoteTraceback(Exception):
    """The cause of an error that came from a worker: its text is the traceback there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def flaw_of(error: BaseException, traceback: str) -> Flaw:
    kind = type(error)
    args = _json(list(error.args))
    held = {name: json for name, value in vars(error).items() if name != "__notes__" and (json := _json(value))}
    holds = None if args is None else msgspec.json.encode((msgspec.Raw(args), _raw(held)))
    return Flaw(f"{kind.__module__}:{kind.__qualname__}", describe(error), holds, traceback)


def restored(flaw: Flaw) -> BaseException:
    """The exception, to be raised."""
    error = _as_it_was(flaw) or TaskFailed(flaw.text)
    error.__cause__ = RemoteTraceback(flaw.traceback) if flaw.traceback else None
    return error


def told(flaw: Flaw, task: str, id: str) -> dict[str, Any]:
    """What an error callback gets as its first argument."""
    return {"task": task, "id": id, "type": flaw.kind, "error": flaw.text, "traceback": flaw.traceback}


def marker(flaw: Flaw, task: str, id: str) -> bytes:
    """As JSON, what stands in a list of results for a member that failed."""
    mark = {**told(flaw, task, id), "holds": None if flaw.holds is None else msgspec.Raw(flaw.holds)}
    return msgspec.json.encode({FAILED: mark})


def with_errors(value: Any) -> Any:
    """A result with exceptions in place of the markers in its lists."""
    if isinstance(value, list):
        return [with_errors(one) for one in value]
    if (
        isinstance(value, dict)
        and value.keys() == {FAILED}
        and isinstance(mark := value[FAILED], dict)
        and "holds" in mark
    ):
        holds = None if mark["holds"] is None else msgspec.json.encode(mark["holds"])
        return restored(Flaw(mark["type"], mark["error"], holds, mark["traceback"]))
    return value


def _as_it_was(flaw: Flaw) -> BaseException | None:
    module, _, name = flaw.kind.partition(":")
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    # What ends a program, such as SystemExit, is not raised because a task failed with it.
    if not (isinstance(found, type) and issubclass(found, Exception)) or flaw.holds is None:
        return None
    args, attributes = msgspec.json.decode(flaw.holds)
    for make in (_called, _bare):
        try:
            error = make(found, args)
            vars(error).update(attributes)
            if list(error.args) == args and describe(error) == flaw.text:
                return error
        except Exception:  # it is made otherwise than from its arguments
            continue
    return None


def _called(kind: type[Exception], args: list[Any]) -> Exception:
    return kind(*args)


def _bare(kind: type[Exception], args: list[Any]) -> Exception:
    """As a copy is made, without `__init__`: that takes something else than what it hands on."""
    error = kind.__new__(kind)
    error.args = tuple(args)
    return error


def _json(value: Any) -> bytes | None:
    try:
        return encode([value])[0][1:-1]
    except Exception:  # whatever a user's value raises while it is looked at
        return None


def _raw(values: dict[str, bytes]) -> dict[str, msgspec.Raw]:
    return {name: msgspec.Raw(json) for name, json in values.items()}
