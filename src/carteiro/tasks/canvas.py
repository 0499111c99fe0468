"""What users write: calls of tasks, put together into chains, groups and chords.

    download.s(url) | group(encode.s("720p"), encode.s("1080p")) | publish.s()

A *signature* is a call of a task that is yet to be made; a *canvas* is a signature, a chain or a group. All of them are
frozen values, made before any app runs and used as often as one likes: what looks like a change returns another one.

What flows through a canvas:

- A task's result is put before the next one's own positional arguments; an immutable signature (`.si()`) takes nothing
  but still waits.
- All members of a group get what came before it. What comes after gets the list of their results, nested as it is
  written: a list also of one, and `[]` of none.
- A failure ends the run, unless it is within a member of a group that collects (`errors="collect"`): then it takes that
  member's place in the list. What else has already begun goes on to its end and is forgotten; nothing more is begun.
- `link` starts another canvas with the result, `link_error` with the failure, once. Neither has a part in the
  result: they have a life of their own, and their failures fail nobody else.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Literal, Protocol, TypedDict, Unpack

import msgspec

from carteiro.durations import Duration, seconds
from carteiro.errors import ConfigurationError
from carteiro.tasks.records import RESERVED

Priority = Literal["high", "normal", "low"]
Errors = Literal["stop", "collect"]


class Home(Protocol):
    """The app of a task, as far as a canvas knows it: it starts runs."""

    async def start_run(self, canvas: Canvas, args: tuple[Any, ...], kwargs: Mapping[str, Any], **options: Any) -> Any:
        """Start it and return its handle. `args` and `kwargs` go to its first tasks; `options` are `apply_async`'s."""
        ...

    def start_run_sync(self, canvas: Canvas, args: tuple[Any, ...], kwargs: Mapping[str, Any], **options: Any) -> Any:
        """The same for code without an event loop."""
        ...


class TaskLike(Protocol):
    """A task, as far as a canvas knows it. `queue` is where its calls go that name none."""

    @property
    def name(self) -> str: ...

    @property
    def queue(self) -> str: ...

    @property
    def home(self) -> Home:
        """Raises ConfigurationError while it belongs to no app."""
        ...


# -- how a call is sent ----------------------------------------------------------------------------------------------


class SendOptions(TypedDict, total=False):
    """What `.set()` takes. None leaves an option as it was.

    `countdown` (a length of time) or `eta` (an aware datetime): not sent to a worker before then. In a chain the
    countdown begins when the task's turn comes. `expires`: not begun any more so long after it was sent.
    """

    queue: str | None
    priority: Priority | None
    countdown: Duration | None
    eta: datetime | None
    expires: Duration | None
    key: str | None
    headers: Mapping[str, str] | None


class Options(msgspec.Struct, frozen=True):
    """How a call is sent. None: nobody said. `delay` and `expires` are seconds, `at` seconds since the epoch."""

    queue: str | None = None
    priority: Priority | None = None
    delay: float | None = None
    at: float | None = None
    expires: float | None = None
    key: str | None = None
    headers: Mapping[str, str] = {}

    def but(self, **given: Unpack[SendOptions]) -> Options:
        """These with others; headers are added. Raises ConfigurationError for what makes no sense."""
        if unknown := given.keys() - SendOptions.__annotations__.keys():
            known = ", ".join(SendOptions.__annotations__)
            raise ConfigurationError(f"a task call has no option `{min(unknown)}`: it has {known}")
        said: dict[str, Any] = {option: value for option, value in given.items() if value is not None}
        if said.get("priority", "normal") not in ("high", "normal", "low"):
            raise ConfigurationError(f"priority={said['priority']!r}: it is high, normal or low")
        if "countdown" in said and "eta" in said:
            raise ConfigurationError("countdown and eta both say when the task is due: give one of them")
        if (countdown := said.pop("countdown", None)) is not None:
            said |= {"delay": seconds(countdown), "at": None}
        if (eta := said.pop("eta", None)) is not None:
            if not isinstance(eta, datetime) or eta.tzinfo is None:
                raise ConfigurationError(f"eta={eta!r} has to be a datetime with a time zone")
            said |= {"at": eta.timestamp(), "delay": None}
        if "expires" in said:
            said["expires"] = seconds(said["expires"])
        if "headers" in said:
            if own := RESERVED & said["headers"].keys():
                raise ConfigurationError(f"headers= of a task call: `{min(own)}` is carteiro's own, name it otherwise")
            said["headers"] = {**self.headers, **said["headers"]}
        return msgspec.structs.replace(self, **said)

    def over(self, defaults: Options, *, first: bool) -> Options:
        """These, and where they say nothing the defaults. When to start is only for what comes first in a canvas."""
        starts = first and self.delay is None and self.at is None
        return Options(
            queue=self.queue or defaults.queue,
            priority=self.priority or defaults.priority,
            delay=defaults.delay if starts else self.delay,
            at=defaults.at if starts else self.at,
            expires=defaults.expires if self.expires is None else self.expires,
            key=defaults.key if self.key is None else self.key,
            headers={**defaults.headers, **self.headers} if defaults.headers else self.headers,
        )


# -- the three kinds of canvas ---------------------------------------------------------------------------------------


class Canvas(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """A signature, a chain or a group. `on_error` are started, once, if anything in it fails for good."""

    on_error: tuple[Canvas, ...] = ()

    @property
    def label(self) -> str:
        """What it is in a few words, for people."""
        raise NotImplementedError

    def __or__(self, after: Canvas) -> Chain:
        return Chain(parts=_links_of(self) + _links_of(after)) if isinstance(after, Canvas) else NotImplemented

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lower()} {self.label}>"

    def link(self, *callbacks: Canvas) -> Canvas:
        """With these to start with its result."""
        raise NotImplementedError

    def link_error(self, *callbacks: Canvas) -> Canvas:
        """With these to start, once, with the failure if anything in it fails for good: a dict as first argument."""
        return msgspec.structs.replace(self, on_error=self.on_error + _checked(callbacks, "link_error"))

    async def delay(self, *args: Any, **kwargs: Any) -> Any:
        """Start it and return the handle of its result. The arguments go to its first tasks, before their own."""
        return await self._home().start_run(self, args, kwargs)

    async def apply_async(
        self, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Any:
        """`delay` with options, for all tasks that say nothing else; when to start is for the first ones."""
        return await self._home().start_run(self, tuple(args), kwargs or {}, **options)

    def delay_sync(self, *args: Any, **kwargs: Any) -> Any:
        """`delay` from code that has no event loop."""
        return self._home().start_run_sync(self, args, kwargs)

    def _home(self) -> Home:
        left: list[Canvas] = [self]
        while left:
            one = left.pop()
            if isinstance(one, Signature):
                return one.task.home
            left += reversed(parts_of(one))
        raise ConfigurationError(f"{self!r} holds no task, so that it belongs to no app: there is nothing to run")


class Signature(Canvas, frozen=True, eq=False):
    """A call of `task` that is yet to be made.

    With `each` it is many calls in one message: `args` are then lists of positional arguments, one list a call, and its
    result is the list of theirs. What it takes and `kwargs` go to each of them.
    """

    task: TaskLike
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}
    options: Options = Options()
    immutable: bool = False
    each: bool = False
    links: tuple[Canvas, ...] = ()

    @property
    def label(self) -> str:
        return self.task.name

    def clone(self, *args: Any, **kwargs: Any) -> Signature:
        """With these put before its own positional arguments, as a result would be, and these named ones added."""
        mine = tuple((*args, *call) for call in self.args) if self.each else (*args, *self.args)
        return msgspec.structs.replace(self, args=mine, kwargs={**self.kwargs, **kwargs})

    def set(self, **options: Unpack[SendOptions]) -> Signature:
        """Sent in another way. Raises ConfigurationError for what makes no sense."""
        return msgspec.structs.replace(self, options=self.options.but(**options))

    def link(self, *callbacks: Canvas) -> Signature:
        return msgspec.structs.replace(self, links=self.links + _checked(callbacks, "link"))


class Chain(Canvas, frozen=True, eq=False):
    """One after the other; its result is the last one's."""

    parts: tuple[Canvas, ...]

    @property
    def label(self) -> str:
        words = (f"chain({len(p.parts)})" if isinstance(p, Chain) else p.label for p in self.parts[:5])
        return " | ".join(words) + (" | …" if len(self.parts) > 5 else "")

    def link(self, *callbacks: Canvas) -> Chain:
        return msgspec.structs.replace(self, parts=(*self.parts[:-1], self.parts[-1].link(*callbacks)))


class Group(Canvas, frozen=True, eq=False):
    """All at once; its result is the list of its members' results."""

    members: tuple[Canvas, ...]
    errors: Errors = "stop"
    links: tuple[Canvas, ...] = ()

    @property
    def label(self) -> str:
        return f"group({len(self.members)})"

    def link(self, *callbacks: Canvas) -> Group:
        return msgspec.structs.replace(self, links=self.links + _checked(callbacks, "link"))


def parts_of(canvas: Canvas) -> tuple[Canvas, ...]:
    """Those that a chain or a group is made of; none for a signature."""
    if isinstance(canvas, Chain):
        return canvas.parts
    return canvas.members if isinstance(canvas, Group) else ()


def tasks_in(canvas: Canvas) -> Iterator[TaskLike]:
    """The task of each of its calls, those of its callbacks among them."""
    left: list[Canvas] = [canvas]
    while left:
        one = left.pop()
        left += (*parts_of(one), *one.on_error)
        if isinstance(one, Signature):
            yield one.task
        if isinstance(one, Signature | Group):
            left += one.links


# -- how they are made -----------------------------------------------------------------------------------------------


def chain(*parts: Canvas | Iterable[Canvas]) -> Chain:
    """One after the other, each with the result of the one before. Takes them one by one, or an iterable.

    A chain in a chain is one chain, unless it has error callbacks of its own.
    """
    links = tuple(itertools.chain.from_iterable(map(_links_of, _checked(parts, "chain"))))
    if not links:
        raise ConfigurationError("chain() of nothing: give it at least one signature")
    return Chain(parts=links)


def group(*members: Canvas | Iterable[Canvas], errors: Errors = "stop") -> Group:
    """All at once; the result is the list of theirs, also of one or none. Takes them one by one, or an iterable.

    With `errors="stop"` a member that fails for good fails the run. With `"collect"` the list holds its error in its
    place, and the run goes on.
    """
    return Group(members=_checked(members, "group"), errors=_known(errors))


def chord(header: Canvas | Iterable[Canvas], body: Canvas, *, errors: Errors | None = None) -> Chain:
    """`group(header) | body`: `body` gets the list of the header's results. `errors` as for a group."""
    members = header if isinstance(header, Group) else group(header)
    return chain(members if errors is None else msgspec.structs.replace(members, errors=_known(errors)), body)


def mapped(task: TaskLike | Signature, items: Iterable[Any], *, errors: Errors = "stop") -> Group:
    """A group of one call for each item, which is its first argument; a tuple is spread to positional arguments."""
    call = _signature(task)
    return group((call.clone(*_arguments(item)) for item in items), errors=errors)


def chunks(task: TaskLike | Signature, items: Iterable[Any], size: int, *, errors: Errors = "stop") -> Group:
    """As `mapped`, with `size` calls in one message, made one after the other: for calls too small to be sent alone.

    The result is a list of lists, one a chunk. A chunk is retried, and fails, as a whole; to a limit of the task it is
    one call, whose key (`per=`) all in it must have.
    """
    if size < 1:
        raise ConfigurationError(f"chunks(size={size}): at least one call goes into a message")
    call = _signature(task)
    calls = ((*_arguments(item), *call.args) for item in items)
    return group(
        (msgspec.structs.replace(call, args=chunk, each=True) for chunk in _batched(calls, size)), errors=errors
    )


def _known(errors: Errors) -> Errors:
    if errors not in ("stop", "collect"):
        raise ConfigurationError(f"errors={errors!r} of a group: it is `stop` or `collect`")
    return errors


def _links_of(part: Canvas) -> tuple[Canvas, ...]:
    return part.parts if isinstance(part, Chain) and not part.on_error else (part,)


def _signature(task: TaskLike | Signature) -> Signature:
    call = task if isinstance(task, Signature) else Signature(task)
    if call.each:
        raise ConfigurationError(f"{call!r} is many calls already: give the task itself")
    return call


def _arguments(item: Any) -> tuple[Any, ...]:
    return item if type(item) is tuple else (item,)


def _batched(calls: Iterable[tuple[Any, ...]], size: int) -> Iterable[tuple[tuple[Any, ...], ...]]:
    left = iter(calls)
    while batch := tuple(itertools.islice(left, size)):
        yield batch


def _checked(given: tuple[Canvas | Iterable[Canvas], ...], where: str) -> tuple[Canvas, ...]:
    if len(given) == 1 and not isinstance(given[0], Canvas) and isinstance(given[0], Iterable):
        given = tuple(given[0])
    for one in given:
        if not isinstance(one, Canvas):
            name = getattr(one, "name", None) or getattr(one, "__name__", None)
            way_out = f": did you mean `{name}.s()`?" if name else ""
            raise ConfigurationError(f"{where}() takes signatures, chains and groups, not {one!r}{way_out}")
    return given  # type: ignore[return-value]  # each was looked at
