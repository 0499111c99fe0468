"""Reading a function: its parameters, their annotations with the names resolved, and their markers."""

from __future__ import annotations

import builtins
import functools
import inspect
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Final

from carteiro.errors import InvalidHandler
from carteiro.handlers.markers import BARE, DependsMarker, Marker, Topic

EMPTY: Final = inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter to be filled. `annotation` is without our markers; it and `default` are EMPTY where there is none.

    `by_name` says that it must be passed by name: it is keyword-only, or one before it is left alone.
    """

    name: str
    annotation: Any
    default: Any
    by_name: bool
    marker: Marker | None

    @property
    def optional(self) -> bool:
        return self.default is not EMPTY


@dataclass(frozen=True, slots=True)
class Signature:
    parameters: tuple[Parameter, ...]
    returns: Any


def name_of(function: Callable[..., Any]) -> str:
    """How the function is called in errors and logs: its qualified name, without what it was defined in."""
    target = _target(function)
    name = getattr(target, "__qualname__", None) or type(target).__qualname__
    return str(name).rpartition("<locals>.")[2]


def place_of(function: Callable[..., Any]) -> str:
    """File and line, the file as seen from the working directory: `shop.py:31`; empty for what is not Python."""
    code = getattr(inspect.unwrap(_code_owner(function)), "__code__", None)
    if code is None:
        return ""
    path = os.path.relpath(code.co_filename)
    return f"{os.path.basename(path) if path.startswith('..') else path}:{code.co_firstlineno}"


def describe(function: Callable[..., Any]) -> str:
    """`reserve` (shop.py:31)."""
    place = place_of(function)
    return f"`{name_of(function)}`" + (f" ({place})" if place else "")


def is_async(function: Callable[..., Any]) -> bool:
    return _is(inspect.iscoroutinefunction, function)


def is_generator(function: Callable[..., Any]) -> bool:
    return _is(inspect.isgeneratorfunction, function)


def is_async_generator(function: Callable[..., Any]) -> bool:
    return _is(inspect.isasyncgenfunction, function)


def _is(kind: Callable[[Any], bool], function: Callable[..., Any]) -> bool:
    target = _target(function)
    return kind(target) or (not isinstance(target, type) and kind(getattr(target, "__call__", None)))  # noqa: B004


def caller_locals(function: Callable[..., Any], depth: int = 1) -> Mapping[str, Any] | None:
    """What the annotations of `function` may name in the frame `depth` calls above the caller of this.

    For decorators: a handler that is defined within a function, with its annotations as strings, names things that only
    that function's frame knows. None where nothing needs it, so that no frame is kept alive.
    """
    frame = sys._getframe(depth + 1)
    annotations = getattr(_code_owner(function), "__annotations__", {})
    if frame.f_locals is frame.f_globals or not any(isinstance(one, str) for one in annotations.values()):
        return None
    return frame.f_locals


def read_signature(
    function: Callable[..., Any], where: str, *, localns: Mapping[str, Any] | None = None, lenient: bool = False
) -> Signature:
    """The parameters of `function` that are to be filled, in order.

    A dependency is read as `lenient`: what has a default and no marker is left alone, as are `*args` and `**kwargs`,
    since any callable may be one. Raises InvalidHandler; `where` begins its text.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return Signature((), Any)  # some of C's have none
    bound = _bound(function)
    skipped = False
    hints = _Hints(function, localns)
    parameters: list[Parameter] = []
    for raw in signature.parameters.values():
        here = f"{where}: parameter `{raw.name}`"
        if raw.name in bound:
            skipped = True
            continue
        if raw.kind in (raw.VAR_POSITIONAL, raw.VAR_KEYWORD):
            if lenient:
                continue
            raise InvalidHandler(f"{here} takes any number of arguments: name each, so that it is known what it needs")
        annotation, marker, default = _split(hints.of(raw.annotation, here), raw.default, here)
        if lenient and marker is None and default is not EMPTY:
            skipped = True
            continue
        if raw.kind is raw.POSITIONAL_ONLY:
            raise InvalidHandler(f"{here} is positional-only: parameters are filled by name; remove the `/`")
        parameters.append(Parameter(raw.name, annotation, default, skipped or raw.kind is raw.KEYWORD_ONLY, marker))
    return Signature(tuple(parameters), hints.returns(signature.return_annotation))


def _split(annotation: Any, default: Any, here: str) -> tuple[Any, Marker | None, Any]:
    """The annotation without our markers, the marker, and the default that is no marker."""
    markers: list[Marker] = []
    if typing.get_origin(annotation) is Annotated:
        rest = []
        for item in annotation.__metadata__:
            marker = _marker(item, here)
            rest.append(item) if marker is None else markers.append(marker)
        annotation = typing.get_args(annotation)[0]
        for item in rest:
            annotation = Annotated[annotation, item]
    marker = _marker(default, here)
    if marker is not None:
        markers.append(marker)
        default = EMPTY
    elif type(default).__module__ == "pydantic.fields":
        raise InvalidHandler(f"{here} has a pydantic Field as its default: write it as `Annotated[..., Field(...)]`")
    if len(markers) > 1:
        raise InvalidHandler(f"{here} is named in {len(markers)} ways: keep one of {', '.join(map(str, markers))}")
    return annotation, markers[0] if markers else None, default


def _marker(item: Any, here: str) -> Marker | None:
    if isinstance(item, Marker):
        return item
    if isinstance(item, type | types.FunctionType):
        if item is Topic:
            raise InvalidHandler(f'{here}: `Topic` needs a name, as in `Topic("stock.released")`')
        return BARE.get(item)
    # FastAPI's and FastDepends' Depends, as they are.
    if hasattr(item, "dependency") and hasattr(item, "use_cache"):
        if getattr(item, "max_concurrency", None) is not None:
            raise InvalidHandler(f"{here}: `max_concurrency` is FastAPI's own: use `concurrency=` on the subscriber")
        return DependsMarker(item.dependency, bool(item.use_cache))
    return None


def _target(function: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _bound(function: Callable[..., Any]) -> set[str]:
    """The parameters that a partial has filled by name."""
    names: set[str] = set()
    while isinstance(function, functools.partial):
        names |= set(function.keywords)
        function = function.func
    return names


def _code_owner(function: Callable[..., Any]) -> Any:
    """Where the parameters are written: the function of a method, `__init__` of a class, `__call__` of an instance."""
    target = _target(function)
    if isinstance(target, type):
        return target.__init__  # type: ignore[misc]  # mypy takes the class for an instance
    if not isinstance(target, types.FunctionType | types.MethodType | types.BuiltinFunctionType):
        target = type(target).__call__
    return getattr(target, "__func__", target)


class _Hints:
    """Resolves annotations, which `from __future__ import annotations` leaves as strings."""

    def __init__(self, function: Callable[..., Any], localns: Mapping[str, Any] | None) -> None:
        owner = inspect.unwrap(_code_owner(function))
        target = _target(function)
        module = sys.modules.get(getattr(target, "__module__", None) or "")
        self._globals: dict[str, Any] = getattr(owner, "__globals__", None) or getattr(module, "__dict__", {})
        self._locals = {**(localns or {}), **_closure(owner)}

    def of(self, annotation: Any, here: str) -> Any:
        """The annotation of one parameter. One that only a type checker can see will do where `Depends` needs none."""
        try:
            return self._resolve(annotation, self._locals)
        except Exception as error:
            with suppress(NameError, TypeError, AttributeError):
                found = self._resolve(annotation, _Lenient(self._globals, self._locals))
                for item in getattr(found, "__metadata__", ()):
                    if isinstance(marker := _marker(item, here), DependsMarker) and marker.dependency is not None:
                        return found
            raise InvalidHandler(
                f"{here} has an annotation that cannot be resolved ({error}): import the name at run time, not only "
                f"under TYPE_CHECKING, and define it at module level"
            ) from error

    def returns(self, annotation: Any) -> Any:
        if annotation is inspect.Signature.empty:
            return Any
        try:
            return self._resolve(annotation, self._locals)
        except Exception:  # what is returned need not be known to be published
            return Any

    def _resolve(self, annotation: Any, localns: Mapping[str, Any]) -> Any:
        if annotation is EMPTY:
            return annotation
        holder = types.SimpleNamespace(__annotations__={"it": annotation})
        hints = typing.get_type_hints(holder, self._globals, localns, include_extras=True)
        return hints["it"]


def _closure(owner: Any) -> dict[str, Any]:
    names = getattr(getattr(owner, "__code__", None), "co_freevars", ())
    found: dict[str, Any] = {}
    for name, cell in zip(names, getattr(owner, "__closure__", None) or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return found


class _Unknown:
    """Stands for a type that cannot be resolved and need not be."""

    def __class_getitem__(cls, item: object) -> type[_Unknown]:
        return cls


class _Lenient(dict[str, Any]):
    """A namespace in which every name means something."""

    def __init__(self, globalns: Mapping[str, Any], localns: Mapping[str, Any]) -> None:
        super().__init__(vars(builtins) | dict(globalns) | dict(localns))

    def __missing__(self, name: str) -> Any:
        return _Unknown
