"""From a decorated function and its options to a task."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Literal, ParamSpec, Protocol, TypeVar, overload

from carteiro.durations import Duration, seconds
from carteiro.errors import ConfigurationError
from carteiro.handlers.signature import describe, is_async
from carteiro.policies.limit import Limit
from carteiro.policies.retry import Retry
from carteiro.tasks.canvas import Priority
from carteiro.tasks.queues import LEVELS
from carteiro.tasks.task import DEFAULT_QUEUE, Task, TaskOptions
from carteiro.tasks.unique import Unique, unique_of
from carteiro.topics import check_topic

P = ParamSpec("P")
T = TypeVar("T")

RunsIn = Literal["loop", "thread", "process"]


class MakeTask(Protocol):
    """What `@app.task(…)` is: a function becomes a task, with its types."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> Task[P, Coroutine[Any, Any, T], T]: ...
    @overload
    def __call__(self, function: Callable[P, T], /) -> Task[P, T, T]: ...


def declared(
    function: Callable[..., Any],
    localns: Mapping[str, Any] | None,
    outer: Sequence[Any],
    *,
    name: str | None = None,
    queue: str = DEFAULT_QUEUE,
    retry: Retry | None = None,
    timeout: Duration | None = None,
    soft_timeout: Duration | None = None,
    rate_limit: str | None = None,
    limit: Limit | None = None,
    result: bool = True,
    result_ttl: Duration | None = None,
    unique: bool | str | Unique = False,
    priority: Priority = "normal",
    expires: Duration | None = None,
    runs_in: RunsIn | None = None,
    waits_for: Sequence[str] = (),
    middleware: Sequence[Any] = (),
) -> Task[..., Any, Any]:
    """As `Router.task`, whose middleware is `outer`. Raises ConfigurationError."""
    if not callable(function) or isinstance(function, Task):
        raise ConfigurationError(f"@task decorates a function, not {function!r}: write @app.task, or @app.task(…)")
    name = _name_of(function) if name is None else name
    who = f"task `{name}` ({describe(function)})"
    for option, given, kind, example in (
        ("retry", retry, Retry, "Retry(attempts=3)"),
        ("limit", limit, Limit, "Limit(2, per=lambda a: a.user_id)"),
    ):
        if given is not None and not isinstance(given, kind):
            raise ConfigurationError(f"{option}={given!r} of {who}: write {option}={example}")
    lengths = {"timeout": timeout, "soft_timeout": soft_timeout, "result_ttl": result_ttl, "expires": expires}
    for option, length in lengths.items():
        if length is not None and seconds(length) <= 0:
            raise ConfigurationError(f"{option}={length} of {who}: it must be over 0 seconds")
    if soft_timeout is not None and not is_async(function):
        raise ConfigurationError(f"soft_timeout of {who}: only an async function can be told; use timeout=")
    if soft_timeout is not None and timeout is not None and seconds(soft_timeout) >= seconds(timeout):
        raise ConfigurationError(f"soft_timeout={soft_timeout} of {who}: it must be under timeout={timeout}")
    if runs_in not in (None, "loop", "thread", "process"):
        raise ConfigurationError(f'runs_in="{runs_in}" of {who}: it is "loop", "thread" or "process"')
    if priority not in LEVELS:
        raise ConfigurationError(f"priority={priority!r} of {who}: it is high, normal or low")
    limits = [] if limit is None else [limit]
    if rate_limit is not None:
        limits.append(Limit(rate=rate_limit))
    return Task(
        function,
        name,
        TaskOptions(
            queue=queue,
            retry=retry,
            timeout=_seconds(timeout),
            soft_timeout=_seconds(soft_timeout),
            limits=tuple(limits),
            result=result,
            result_ttl=_seconds(result_ttl),
            unique=unique_of(unique),
            priority=priority,
            expires=_seconds(expires),
            runs_in=runs_in,
            waits_for=tuple(map(check_topic, waits_for)),
            middleware=(*outer, *middleware),
        ),
        localns,
    )


def _name_of(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", None)
    if name is None or name == "<lambda>":
        raise ConfigurationError(f"{function!r} has no name of its own, as a task needs: give name=")
    return str(name)


def _seconds(length: Duration | None) -> float | None:
    return None if length is None else seconds(length)
