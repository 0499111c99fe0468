"""From signatures to slots: which call fills which slot, settled once for a handler and all that it depends on.

The slots of one message are filled in three parts: what is *given* by the message (the body is decoded here, before any
dependency is opened), what is *derived* from that (fields of the body, emitters), and what the *steps* return. Until
all signatures are read the length of the parts is unknown, so that a place is first a pair of part and index.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_origin

from carteiro.errors import InvalidHandler, InvalidTopic
from carteiro.handlers.dependencies import Kind, Slots, Step, bind
from carteiro.handlers.injected import Emit
from carteiro.handlers.markers import BodyMarker, DependsMarker, HeaderMarker, PathMarker, TopicMarker
from carteiro.handlers.signature import EMPTY, Parameter, describe, name_of, read_signature
from carteiro.handlers.sources import Source, Sources, is_field
from carteiro.ports.native import named

Function = Callable[..., Any]
Place = tuple[int, int]
_GIVEN, _DERIVED, _STEPS = range(3)


@dataclass(frozen=True, slots=True)
class Call:
    """A function, and the place of each of its arguments."""

    function: Function
    positional: tuple[Place, ...]
    keywords: Mapping[str, Place]
    returns: Any
    body_type: Any = None


@dataclass
class Wiring:
    """Reads a handler and its dependencies. Raises InvalidHandler, which names handler, file, line and parameter."""

    sources: Sources
    overrides: Mapping[Function, Function]
    localns: Mapping[str, Any] | None = None
    by_name: bool = False
    """Whether a lone parameter of the body is one of its fields, too."""
    given: list[Source] = field(default_factory=list)
    derived: list[Callable[[Slots], Any]] = field(default_factory=list)
    calls: list[tuple[Kind, Call]] = field(default_factory=list)
    emitted: int | None = None
    """The slot of the list that collects what is emitted."""
    emits_to: list[TopicMarker] = field(default_factory=list)
    _shared: dict[Any, Place] = field(default_factory=dict)

    def read(self, function: Function, where: str, chain: tuple[Function, ...] = ()) -> Call:
        """Find a place for each parameter of `function`; `chain` is what depends on it, the handler first."""
        home = chain[0] if chain else function
        localns = self.localns if getattr(function, "__module__", None) == getattr(home, "__module__", "") else None
        signature = read_signature(function, where, localns=localns, lenient=bool(chain))
        places: dict[str, Place] = {}
        bodies: list[Parameter] = []
        for parameter in signature.parameters:
            here = f"{where}: parameter `{parameter.name}`"
            place = self._place(parameter, where, here, (*chain, function))
            if place is not None:
                places[parameter.name] = place
            elif chain and parameter.marker is None:
                raise InvalidHandler(
                    f"{here}: say where a dependency's parameter comes from: Depends(), Header(), Path() or Body()"
                )
            else:
                bodies.append(parameter)
        body_type = self._bodies(bodies, where, places)
        by_name = {one.name for one in signature.parameters if one.by_name}
        return Call(
            function,
            tuple(places[one.name] for one in signature.parameters if one.name not in by_name),
            {one.name: places[one.name] for one in signature.parameters if one.name in by_name},
            signature.returns,
            body_type,
        )

    def bind(self, call: Call, function: Function | None = None) -> Callable[[Slots], Any]:
        """The call on the slots of one message, once everything is read; of `function` instead of its own, if given."""
        indexes = [self._index(place) for place in call.positional]
        return bind(
            call.function if function is None else function,
            indexes,
            {name: self._index(place) for name, place in call.keywords.items()},
        )

    def steps(self) -> tuple[Step, ...]:
        return tuple(Step(name_of(call.function), kind, self.bind(call)) for kind, call in self.calls)

    def in_order(self, call: Call) -> bool:
        """Whether the arguments are just what is given, one by one."""
        given = tuple((_GIVEN, index) for index in range(len(self.given)))
        return not call.keywords and not self.derived and not self.calls and call.positional == given

    def _index(self, place: Place) -> int:
        part, index = place
        return index + (0, len(self.given), len(self.given) + len(self.derived))[part]

    def _give(self, source: Source) -> Place:
        self.given.append(source)
        return _GIVEN, len(self.given) - 1

    def _derive(self, source: Callable[[Slots], Any]) -> Place:
        self.derived.append(source)
        return _DERIVED, len(self.derived) - 1

    def _place(self, parameter: Parameter, where: str, here: str, chain: tuple[Function, ...]) -> Place | None:
        """Where a parameter's value will be, or None if it is of the body."""
        marker, annotation = parameter.marker, parameter.annotation
        injected = self.sources.injected(parameter)
        is_emit = annotation is Emit or get_origin(annotation) is Emit
        if marker is not None and (injected is not None or is_emit is not isinstance(marker, TopicMarker)):
            kind = type(marker).__name__.removesuffix("Marker")
            if kind == "Topic":
                raise InvalidHandler(f"{here} has a `Topic`, which is for an `Emit`, and is of another type")
            raise InvalidHandler(f"{here} is named in two ways: by `{kind}` and by its type")
        match marker:
            case DependsMarker():
                return self._depend(parameter, marker, where, here, chain)
            case HeaderMarker():
                return self._give(self.sources.header(parameter, marker, here))
            case PathMarker():
                return self._give(self.sources.path(parameter, marker, here))
            case TopicMarker():
                return self._emit(marker, here)
            case BodyMarker():
                return None
        if is_emit:
            raise InvalidHandler(f'{here} needs its topic: `Annotated[Emit[...], Topic("stock.released")]`')
        return None if injected is None else self._give(injected)

    def _bodies(self, bodies: Sequence[Parameter], where: str, places: dict[str, Place]) -> Any:
        """Find places for what comes from the body; returns the body's type, None if nothing does."""
        body_type: Any = None
        among = max(2, len(bodies)) if self.by_name else len(bodies)
        fields = [one for one in bodies if is_field(one, among)]
        if fields:
            body_type, source, picks = self.sources.fields(fields, where)
            _, index = self._give(source)
            for one, pick in zip(fields, picks, strict=True):
                places[one.name] = self._derive(partial(_picked, index, pick))
        for one in bodies:
            if one not in fields:
                places[one.name] = self._give(self.sources.body(one, f"{where}: parameter `{one.name}`"))
                body_type = Any if one.annotation is EMPTY else one.annotation
        return body_type

    def _emit(self, marker: TopicMarker, here: str) -> Place:
        try:
            named(marker.to)
        except InvalidTopic as error:
            raise InvalidHandler(f"{here}: {error}") from error
        if self.emitted is None:
            _, self.emitted = self._give(_new_list)
        self.emits_to.append(marker)
        to, broker, emitted = marker.to, marker.broker, self.emitted
        return self._derive(lambda slots: Emit(to, slots[emitted], broker=broker))

    def _depend(
        self, parameter: Parameter, marker: DependsMarker, where: str, here: str, chain: tuple[Function, ...]
    ) -> Place:
        dependency = parameter.annotation if marker.dependency is None else marker.dependency
        if dependency is EMPTY or not callable(dependency):
            raise InvalidHandler(f"{here}: `Depends` needs something to call, as in `Depends(session)`")
        hashable = getattr(type(dependency), "__hash__", None) is not None
        if hashable:
            dependency = self.overrides.get(dependency, dependency)
        if dependency in chain:
            names = " -> ".join(map(name_of, (*chain[chain.index(dependency) :], dependency)))
            raise InvalidHandler(f"{here}: `{name_of(dependency)}` depends on itself: {names}")
        key = dependency if hashable else id(dependency)
        if marker.use_cache and key in self._shared:
            return self._shared[key]
        call = self.read(dependency, f"{where}: dependency {describe(dependency)}", chain)
        self.calls.append((Kind.of(dependency), call))
        place = _STEPS, len(self.calls) - 1
        if marker.use_cache:
            self._shared[key] = place
        return place


def _picked(index: int, pick: Callable[[Any], Any], slots: Slots) -> Any:
    return pick(slots[index])


def _new_list(item: object) -> list[Any]:
    return []
