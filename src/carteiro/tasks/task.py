"""A task: a function that can also be called later, elsewhere."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, ParamSpec, TypeVar, get_origin

import msgspec

from carteiro.durations import Duration
from carteiro.errors import ConfigurationError, InvalidBody, Unencodable
from carteiro.handlers.codecs import encode
from carteiro.handlers.injected import Emit, Logger
from carteiro.handlers.markers import BodyMarker
from carteiro.handlers.signature import EMPTY, Parameter, describe, read_signature
from carteiro.message import Message
from carteiro.policies.limit import Limit
from carteiro.policies.retry import Retry
from carteiro.tasks.canvas import Errors, Group, Options, Priority, Signature, chunks, mapped
from carteiro.tasks.context import current_task
from carteiro.tasks.result import TaskResult
from carteiro.tasks.retrying import RetryState
from carteiro.tasks.unique import Unique

if TYPE_CHECKING:
    from carteiro.tasks.desk import Desk

P = ParamSpec("P")
C = TypeVar("C")
T = TypeVar("T")

DEFAULT_QUEUE: Final = "default"


class TaskOptions(msgspec.Struct, frozen=True):
    """What a task is declared with. Times are in seconds; None leaves a choice to the app."""

    queue: str = DEFAULT_QUEUE
    retry: Retry | None = None
    timeout: float | None = None
    soft_timeout: float | None = None
    limits: tuple[Limit, ...] = ()
    result: bool = True
    result_ttl: float | None = None
    unique: Unique | None = None
    priority: Priority = "normal"
    expires: float | None = None
    runs_in: Literal["loop", "thread", "process"] | None = None
    waits_for: tuple[str, ...] = ()
    middleware: tuple[Any, ...] = ()
    """Of `ConsumeMiddleware`."""


class Task(Generic[P, C, T]):
    """`C` is what calling it gives, as calling the function does; `T` is its result.

    Calling a task calls its function, here and now. `delay` and `apply_async` send it to a worker; `s` and `si` make a
    call to be put together with others.
    """

    __name__: str

    def __init__(
        self,
        function: Callable[P, C],
        name: str,
        options: TaskOptions,
        localns: Mapping[str, Any] | None = None,
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.name = name
        self.options = options
        self.localns = localns
        self._desk: Desk | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> C:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<task {self.name}>"

    def __reduce__(self) -> str:
        return str(getattr(self.function, "__qualname__", self.name))  # by its place, as a function is

    # -- sending it ------------------------------------------------------------------------------------------------

    async def delay(self, *args: P.args, **kwargs: P.kwargs) -> TaskResult[T]:
        """Send it to a worker with these arguments; returns the handle of its result once the broker has it safe."""
        return await self.home.send(self, args, kwargs)

    async def apply_async(
        self,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        countdown: Duration | None = None,
        eta: datetime | None = None,
        expires: Duration | None = None,
        queue: str | None = None,
        priority: Priority | None = None,
        key: str | None = None,
        unique: bool | str | Unique | None = None,
        headers: Mapping[str, str] | None = None,
        retry: Retry | int | None = None,
        id: str | None = None,
    ) -> TaskResult[T]:
        """`delay` with options.

        - `countdown` (a length of time) or `eta` (an aware datetime): not before then. `expires`: not begun any more
          after so long.
        - `queue`: another than its own; workers take up queues that they did not know. `priority`: `"high"`,
          `"normal"` or `"low"` within its queue.
        - `unique`: True, a key, or `Unique(…)`: while one is waiting or running, this returns the handle of that one.
        - `retry`: another policy than the task's own, or a number of attempts. `headers` and `key` are the message's.
          `id`: a second task with it within the app's dedupe window is dropped, and one that comes later does not run
          while it is kept how the first has ended.

        Raises TypeError for arguments that it does not take, Unencodable for what no body can hold, and what
        `app.publish` raises.
        """
        return await self.home.send(
            self, tuple(args), kwargs or {}, countdown=countdown, eta=eta, expires=expires, queue=queue,
            priority=priority, key=key, unique=unique, headers=headers, retry=retry, id=id,
        )  # fmt: skip

    def delay_sync(self, *args: P.args, **kwargs: P.kwargs) -> TaskResult[T]:
        """`delay` for code that has no event loop."""
        return self.home.send_sync(self, args, kwargs)

    def apply_sync(
        self, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> TaskResult[T]:
        """`apply_async` for code that has no event loop."""
        return self.home.send_sync(self, tuple(args), kwargs or {}, **options)

    # -- putting it together ---------------------------------------------------------------------------------------

    def s(self, *args: Any, **kwargs: Any) -> Signature:
        """A call to be made later: in a chain the result of what comes before is put before its arguments."""
        self.bound(args, kwargs, partial=True)
        return Signature(task=self, args=args, kwargs=kwargs, options=self._said)

    def si(self, *args: Any, **kwargs: Any) -> Signature:
        """A call to be made later, with these arguments and no others: it takes no result."""
        self.bound(args, kwargs)
        return Signature(task=self, args=args, kwargs=kwargs, options=self._said, immutable=True)

    def map(self, items: Iterable[Any], *, errors: Errors = "stop") -> Group:
        """A group of one call for each item."""
        return mapped(self, items, errors=errors)

    def chunks(self, items: Iterable[Any], size: int, *, errors: Errors = "stop") -> Group:
        """As `map`, with `size` calls in one message, made one after the other; the result is a list of lists."""
        return chunks(self, items, size, errors=errors)

    # -- looking at it ---------------------------------------------------------------------------------------------

    @property
    def home(self) -> Desk:
        """Raises ConfigurationError for a task of a router that no app includes."""
        if self._desk is None:
            raise ConfigurationError(
                f"task `{self.name}` belongs to a router that no app includes: `app.include(router)` first"
            )
        return self._desk

    @property
    def queue(self) -> str:
        """Where its calls go that name none."""
        return self.options.queue

    @property
    def retry_state(self) -> RetryState:
        """Within the task, while it runs: which attempt this is. Raises ConfigurationError elsewhere."""
        context = current_task(f"`{self.name}.retry_state`")
        message = context.delivery.message
        return RetryState(message.attempt, context.retry.attempts, context.delivery.history, message.published_at)

    @property
    def importable(self) -> Callable[P, C]:
        """What another process finds by the function's name: this, or the function if that is what stands there."""
        found: Any = sys.modules.get(self.function.__module__)
        for part in getattr(self.function, "__qualname__", self.name).split("."):
            found = getattr(found, part, None)
        return self if found is self else self.function

    def belong(self, desk: Desk) -> None:
        """Raises ConfigurationError if it is another app's already."""
        if self._desk is not None and self._desk is not desk:
            raise ConfigurationError(
                f"task `{self.name}` is in two apps: which of them is `delay` to use? Include its router in one"
            )
        self._desk = desk

    # -- its arguments ---------------------------------------------------------------------------------------------

    @functools.cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Those that are arguments, and not injected. Raises InvalidHandler for a function that can be no task."""
        signature = read_signature(self.function, f"task {describe(self.function)}", localns=self.localns)
        return tuple(parameter for parameter in signature.parameters if _is_argument(parameter))

    @functools.cached_property
    def defaults(self) -> Mapping[str, Any]:
        return {one.name: one.default for one in self.parameters if one.optional}

    @functools.cached_property
    def returns(self) -> Any:
        """What it says that it returns."""
        return read_signature(self.function, f"task {describe(self.function)}", localns=self.localns).returns

    def bound(self, args: Iterable[Any], kwargs: Mapping[str, Any], *, partial: bool = False) -> dict[str, Any]:
        """The arguments by name. Raises TypeError as calling it would; what is `partial` may lack some, and what comes
        before them has no name yet.
        """
        names = [one.name for one in self.parameters]
        values = tuple(args)
        known = set(names)
        for name in kwargs:
            if name not in known:
                raise TypeError(f"{self.name}() got an unexpected keyword argument '{name}'")
        if len(values) > len(names):
            arguments = "argument" if len(names) == 1 else "arguments"
            raise TypeError(f"{self.name}() takes {len(names)} {arguments} but {len(values)} were given")
        if partial:
            return dict(kwargs)
        bound = dict(zip(names, values, strict=False))
        for name, value in kwargs.items():
            if name in bound:
                raise TypeError(f"{self.name}() got multiple values for argument '{name}'")
            bound[name] = value
        missing = [f"'{one.name}'" for one in self.parameters if not one.optional and one.name not in bound]
        if missing:
            arguments = "argument" if len(missing) == 1 else "arguments"
            raise TypeError(f"{self.name}() missing {len(missing)} required {arguments}: {', '.join(missing)}")
        return bound

    def body(self, args: Iterable[Any], kwargs: Mapping[str, Any]) -> bytes:
        """The body of its message: its arguments by name, as JSON. Raises TypeError and Unencodable."""
        bound = self.bound(args, kwargs)
        try:
            return encode(bound)[0]
        except Unencodable:
            for name, value in bound.items():
                try:
                    encode([value])
                except Unencodable as error:
                    raise Unencodable(f"task `{self.name}`, argument `{name}`: {error}") from error
            raise

    def filled(self, arguments: bytes, taken: bytes | None) -> bytes:
        """The body for a call that was put together: what was taken goes first. Raises InvalidBody."""
        positional, named = _arguments_of(arguments)
        return self._named((*((msgspec.Raw(taken),) if taken is not None else ()), *positional), named)

    def filled_each(self, arguments: bytes, taken: bytes | None) -> list[bytes]:
        """The bodies for many calls in one message."""
        calls, named = _calls_of(arguments)
        before = () if taken is None else (msgspec.Raw(taken),)
        return [self._named((*before, *call), named) for call in calls]

    def _named(self, positional: Iterable[msgspec.Raw], named: Mapping[str, msgspec.Raw]) -> bytes:
        try:
            return _encode(self.bound(positional, named))
        except TypeError as error:
            raise InvalidBody(str(error)) from error

    @property
    def _said(self) -> Options:
        """What its calls are sent with that say nothing else."""
        priority = None if self.options.priority == "normal" else self.options.priority
        return Options(priority=priority, expires=self.options.expires)


_encode = msgspec.json.Encoder().encode
_arguments_of = msgspec.json.Decoder(tuple[list[msgspec.Raw], dict[str, msgspec.Raw]]).decode
_calls_of = msgspec.json.Decoder(tuple[list[list[msgspec.Raw]], dict[str, msgspec.Raw]]).decode


def _is_argument(parameter: Parameter) -> bool:
    kind = parameter.annotation
    if parameter.marker is not None and not isinstance(parameter.marker, BodyMarker):
        return False
    return kind is EMPTY or not (kind is Message or kind is Logger or kind is Emit or get_origin(kind) is Emit)
