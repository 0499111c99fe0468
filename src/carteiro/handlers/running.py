"""Running a handler that is wired: on the loop, in a thread, or in a process.

Each way is a *runner*: it takes a function and gives one whose result can be awaited.
"""

from __future__ import annotations

import pickle
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from types import CoroutineType
from typing import Any, Protocol

import msgspec

from carteiro.errors import InvalidHandler
from carteiro.handlers.dependencies import (
    Kind,
    Opened,
    Slots,
    Step,
    close_all,
    close_all_in_thread,
    no_coroutine,
    open_all,
    open_all_in_thread,
)
from carteiro.handlers.injected import Emitted
from carteiro.handlers.signature import name_of
from carteiro.handlers.wiring import Call, Function, Wiring

Runner = Callable[[Callable[[Any], Any]], Callable[[Any], Coroutine[Any, Any, Any]]]


class CallSync(Protocol):
    """Runs a function elsewhere: in a pool of threads or of processes."""

    def __call__(self, function: Callable[..., Any], /, *args: Any) -> Awaitable[Any]: ...


class Called(msgspec.Struct, frozen=True):
    """What a handler that emits has done: what it returned, and what is to be published."""

    result: Any
    emitted: list[Emitted]


@dataclass(frozen=True, slots=True)
class Ready:
    """A wired handler. `direct` is `enter` and `invoke` in one, for those without steps; `emitted` is a slot."""

    name: str
    enter: Callable[[Any], Slots]
    invoke: Callable[[Slots], Any]
    direct: Callable[[Any], Any]
    steps: tuple[Step, ...]
    emitted: int | None

    @property
    def simple(self) -> bool:
        return not self.steps and self.emitted is None


def prepare(
    call: Call, wiring: Wiring, *, function: Function | None = None, carry: Callable[[Any], Any] | None = None
) -> Ready:
    """The plan's parts, with `function` called in place of the handler, on what `carry` makes of the message."""
    function = call.function if function is None else function
    enter = _enter(tuple(wiring.given), tuple(wiring.derived), carry)
    invoke = wiring.bind(call, function)
    direct: Callable[[Any], Any] = lambda item: invoke(enter(item))  # noqa: E731
    if wiring.in_order(call) and carry is None:
        direct = _direct(function, tuple(wiring.given))
    return Ready(name_of(call.function), enter, invoke, direct, wiring.steps(), wiring.emitted)


def _direct(function: Function, given: tuple[Callable[[Any], Any], ...]) -> Callable[[Any], Any]:
    if len(given) == 1:
        source = given[0]
        return lambda item: function(source(item))
    return lambda item: function(*[source(item) for source in given])


def _enter(
    given: tuple[Callable[[Any], Any], ...],
    derived: tuple[Callable[[Slots], Any], ...],
    carry: Callable[[Any], Any] | None,
) -> Callable[[Any], Slots]:
    def enter(item: Any) -> Slots:
        slots = [source(item) for source in given]
        for derive in derived:
            slots.append(derive(slots))
        return slots

    return enter if carry is None else lambda item: enter(carry(item))


# -- runners -------------------------------------------------------------------------------------------------------


def as_it_is(function: Callable[[Any], Any]) -> Callable[[Any], Coroutine[Any, Any, Any]]:
    """An async function's result can be awaited already."""
    return function


def inline(function: Callable[[Any], Any]) -> Callable[[Any], Coroutine[Any, Any, Any]]:
    """A sync function on the loop."""

    async def run(argument: Any) -> Any:
        result = function(argument)
        return await result if type(result) is CoroutineType else result  # a decorator may hide an `async def`

    return run


def in_thread(call_sync: CallSync) -> Runner:
    def runner(function: Callable[[Any], Any]) -> Callable[[Any], Coroutine[Any, Any, Any]]:
        async def run(argument: Any) -> Any:
            result = await call_sync(function, argument)
            return await result if type(result) is CoroutineType else result

        return run

    return runner


def arguments(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Called in place of a handler that runs in a process: what is to be sent there."""
    return args, kwargs


def across(call_sync: CallSync, function: Function, where: str) -> Runner:
    """`function`, in a process, on the `arguments` that come from this one."""

    def runner(
        collect: Callable[[Any], tuple[tuple[Any, ...], Mapping[str, Any]]],
    ) -> Callable[[Any], Coroutine[Any, Any, Any]]:
        async def run(argument: Any) -> Any:
            args, kwargs = collect(argument)
            try:
                return await call_sync(partial(function, **kwargs) if kwargs else function, *args)
            except (pickle.PicklingError, TypeError, AttributeError) as error:  # what pickle raises
                for value in (*args, *kwargs.values()):
                    if (reason := _unpicklable(value)) is not None:
                        raise InvalidHandler(
                            f"{where} runs in a process, and its argument of type `{type(value).__qualname__}` cannot "
                            f'be sent there ({reason}): take what can be pickled, or use runs_in="thread"'
                        ) from error
                raise

        return run

    return runner


def check_process(wiring: Wiring, function: Function, where: str) -> None:
    """Raise InvalidHandler for what cannot be split between two processes."""
    if wiring.emitted is not None:
        raise InvalidHandler(
            f'{where} runs in a process, where `Emit` does not reach: return the value, or use runs_in="thread"'
        )
    for kind, call in wiring.calls:
        if kind in (Kind.GENERATOR, Kind.ASYNC_GENERATOR):
            raise InvalidHandler(
                f"{where} runs in a process, and what its dependency `{name_of(call.function)}` yields stays in this "
                f'one: open it within the handler, or use runs_in="thread"'
            )
    if (reason := _unpicklable(function)) is not None:
        raise InvalidHandler(
            f"{where} runs in a process, which must be able to import it ({reason}): define it at module level"
        )


def _unpicklable(value: Any) -> str | None:
    try:
        pickle.dumps(value)
    except Exception as error:
        return str(error)
    return None


# -- whole plans ---------------------------------------------------------------------------------------------------


def on_loop(ready: Ready, runner: Runner) -> Callable[[Any], Coroutine[Any, Any, Any]]:
    """Dependencies on the loop, the handler by `runner`."""
    if ready.simple:
        return runner(ready.direct)
    enter, steps, emitted = ready.enter, ready.steps, ready.emitted
    invoke = runner(ready.invoke)

    async def plain(item: Any) -> Any:
        slots = enter(item)
        if steps:
            await open_all(steps, slots, [])
        result = await invoke(slots)
        return result if emitted is None else Called(result, slots[emitted])

    async def closing(item: Any) -> Any:
        slots = enter(item)
        opened: Opened = []
        result = error = None
        try:
            await open_all(steps, slots, opened)
            result = await invoke(slots)
        except BaseException as raised:
            error = raised
        error = await close_all(opened, error)
        if error is not None:
            try:
                raise error
            finally:
                del error  # or its traceback would hold this frame, and this frame it
        return result if emitted is None else Called(result, slots[emitted])

    return closing if _closes(ready) else plain


def whole(ready: Ready) -> Callable[[Any], Any]:
    """All of it as one sync function, for one hop to a thread."""
    if ready.simple:
        return ready.direct
    name, enter, invoke, steps, emitted = ready.name, ready.enter, ready.invoke, ready.steps, ready.emitted

    def run(item: Any) -> Any:
        slots = enter(item)
        opened: Opened = []
        result = error = None
        try:
            open_all_in_thread(steps, slots, opened)
            result = invoke(slots)
            no_coroutine(result, name)
        except BaseException as raised:
            error = raised
        error = close_all_in_thread(opened, error)
        if error is not None:
            try:
                raise error
            finally:
                del error
        return result if emitted is None else Called(result, slots[emitted])

    return run


def _closes(ready: Ready) -> bool:
    return any(step.kind in (Kind.GENERATOR, Kind.ASYNC_GENERATOR) for step in ready.steps)
