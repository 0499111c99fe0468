"""What users write: what a schedule sends, and functions that make it at that moment."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Annotated, Any, Final, TypedDict, Unpack, get_args

import msgspec

from carteiro.durations import Duration, seconds
from carteiro.errors import ConfigurationError
from carteiro.handlers.injected import Emit
from carteiro.handlers.markers import Topic
from carteiro.handlers.signature import describe, is_async, is_async_generator, is_generator
from carteiro.message import TYPE
from carteiro.policies.retry import Retry
from carteiro.schedules.records import Misfire, Overlap
from carteiro.schedules.specs import At, Cron, Every
from carteiro.tasks.canvas import Canvas, Signature
from carteiro.tasks.task import Task

QUEUE: Final = "schedules"
"""The task queue of functions that make what is sent: who fires schedules works it off, and nobody else."""
LONGEST: Final = 150
"""Bytes of a name."""
_EMIT: Final = "carteiro_emit"
"""The name of the parameter by which such a function's results leave."""

Spec = Cron | Every | At


class Publish(msgspec.Struct, frozen=True, eq=False):
    """A message for a schedule to send: `Publish("heartbeats", {"ok": True}, key="k")`. Its options are those of
    `app.publish`; `delay` and `expires` count from when it is sent.
    """

    topic: str
    value: Any
    key: str | None = None
    headers: Mapping[str, str] | None = None
    type: str | None = None
    delay: Duration | None = None
    expires: Duration | None = None
    broker: str | None = None


class FiringOptions(TypedDict, total=False):
    """What a schedule may say besides its times and what it sends; see `Router.schedule`."""

    misfire: Misfire
    max_age: Duration | None
    overlap: Overlap


class Plan(msgspec.Struct, frozen=True, eq=False):
    """A schedule as declared in code. `max_age` is in seconds."""

    name: str
    spec: Spec
    what: Canvas | Publish
    misfire: Misfire = "once"
    max_age: float | None = None
    overlap: Overlap = "allow"


class Source(msgspec.Struct, frozen=True, eq=False):
    """A function that a schedule calls, and where what it makes is published. `options` are those of its task."""

    plan: Callable[[Canvas], Plan]
    name: str
    function: Callable[..., Any]
    to: str | None
    key: Callable[[Any], str | None] | None
    headers: Mapping[str, str]
    delay: float
    broker: str | None
    localns: Mapping[str, Any] | None
    options: Mapping[str, Any]
    middleware: tuple[Any, ...] = ()
    """Of the routers that it was declared in."""


def plan(
    name: str,
    spec: Spec,
    what: Canvas | Publish,
    *,
    misfire: Misfire = "once",
    max_age: Duration | None = None,
    overlap: Overlap = "allow",
) -> Plan:
    """Raises ConfigurationError for what cannot be."""
    who = f"schedule `{name}`"
    if not isinstance(name, str) or not name or any(letter.isspace() for letter in name):
        raise ConfigurationError(
            f"a schedule needs a name without spaces, not {name!r}: it is shown and asked for by it"
        )
    if len(name.encode()) > LONGEST:
        raise ConfigurationError(
            f"the name of {who} has over {LONGEST} bytes: ids are made of it, and brokers limit them"
        )
    if not isinstance(spec, Spec):
        raise ConfigurationError(f'{who}: {spec!r} is no time: write cron("0 2 * * *"), every(minutes=5) or at(when)')
    if not isinstance(what, Canvas | Publish):
        task = getattr(what, "name", None) or getattr(what, "__name__", None)
        way_out = (
            f"did you mean `{task}.s()`?" if task else 'it is a call `task.s(…)`, a canvas, or `Publish("topic", …)`'
        )
        raise ConfigurationError(f"{who}: {what!r} cannot be sent: {way_out}")
    for option, given, known in (("misfire", misfire, Misfire), ("overlap", overlap, Overlap)):
        if given not in get_args(known):
            raise ConfigurationError(f"{option}={given!r} of {who}: it is {', '.join(map(repr, get_args(known)))}")
    if isinstance(what, Publish) and not isinstance(what.topic, str):
        raise ConfigurationError(
            f"{who}: {what.topic!r} is an object of a broker's own, and the topic of a Publish is a name; have "
            "a task publish to it"
        )
    if isinstance(what, Publish) and overlap != "allow":
        raise ConfigurationError(
            f"overlap={overlap!r} of {who}: nobody knows when a message has been handled by all; send a task instead"
        )
    called = what.task if isinstance(what, Signature) else None
    if isinstance(called, Task) and not called.options.result and overlap != "allow":
        raise ConfigurationError(
            f"overlap={overlap!r} of {who}: task `{called.name}` keeps nothing (result=False), so nobody knows "
            "when it is over: drop one of the two"
        )
    age = None if max_age is None else seconds(max_age)
    if age is not None and age <= 0:
        raise ConfigurationError(f"max_age={max_age} of {who}: it must be over 0 seconds")
    return Plan(name, spec, what, misfire, age, overlap)


def source(
    function: Callable[..., Any],
    spec: Spec,
    to: str | None,
    *,
    localns: Mapping[str, Any] | None,
    name: str | None,
    key: Callable[[Any], str | None] | None,
    headers: Mapping[str, str] | None,
    type: str | None,
    delay: Duration | None,
    broker: str | None,
    retry: Retry | None,
    timeout: Duration | None,
    **options: Unpack[FiringOptions],
) -> Source:
    """Of a decorated function. Raises ConfigurationError."""
    if not callable(function):
        raise ConfigurationError(f"@app.scheduled decorates a function, not {function!r}")
    known = name or str(getattr(function, "__name__", ""))
    checked: FiringOptions = {**options, "overlap": "allow"}  # a message has none, and there is no task yet
    plan(known, spec, Publish("", None), **checked)  # where the decorator stands
    if to is None and any(given is not None for given in (key, headers, type, delay, broker)):
        raise ConfigurationError(
            f'schedule `{known}` ({describe(function)}) publishes nothing, since it has no to=: write to="topic", or '
            "drop its other options"
        )
    written = {**(headers or {}), **({} if type is None else {TYPE: type})}
    return Source(
        lambda call: plan(known, spec, call, **options), known, function, to, key, written,
        0.0 if delay is None else seconds(delay), broker, localns, {"retry": retry, "timeout": timeout},
    )  # fmt: skip


def publishing(source: Source) -> Callable[..., Any]:
    """Its function, with what it returns, or each thing that it yields, published when it has succeeded."""
    function, to = source.function, source.to
    if to is None and not (is_generator(function) or is_async_generator(function)):
        return function

    def send(values: list[Any], emit: Emit[Any] | None) -> None:
        if emit is None:
            return
        for value in values:
            if value is not None:
                emit(value, key=None if source.key is None else source.key(value), headers=source.headers,
                     delay=source.delay)  # fmt: skip

    @wraps(function)
    async def run_async(*args: Any, **kwargs: Any) -> None:
        emit = kwargs.pop(_EMIT, None)
        made = function(*args, **kwargs)
        send([value async for value in made] if is_async_generator(function) else [await made], emit)

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        emit = kwargs.pop(_EMIT, None)
        made = function(*args, **kwargs)
        send(list(made) if is_generator(function) else [made], emit)

    call: Callable[..., Any] = run_async if is_async(function) or is_async_generator(function) else run
    signature = inspect.signature(function)
    if to is not None:
        own = inspect.Parameter(
            _EMIT, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[Emit[Any], Topic(to, broker=source.broker)]
        )
        parameters = list(signature.parameters.values())
        signature = signature.replace(parameters=[*parameters, own])
    call.__signature__ = signature.replace(return_annotation=None)  # type: ignore[attr-defined]
    return call
