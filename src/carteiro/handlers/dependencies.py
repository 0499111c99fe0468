"""What `Depends` names, put in an order, opened for a message and closed after it.

Caching, nesting and overriding are settled when the plan is compiled: each dependency that is called once becomes one
step, after those that it needs, and its value one slot. For a message the steps run one after another, each on the
slots before it. Generators are closed in reverse order and see the failure, if there was one. They cannot swallow it,
as a message whose handler failed must not be acked; what one of them raises itself takes the failure's place.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from operator import itemgetter
from types import CoroutineType, GeneratorType, TracebackType
from typing import Any, Final, NamedTuple

from carteiro.handlers.signature import is_async, is_async_generator, is_generator

Slots = list[Any]
Opened = list[tuple[str, Any]]
"""Generators to be closed, with their names."""

_NOTHING: Final = object()


class Kind(enum.Enum):
    SYNC = enum.auto()
    ASYNC = enum.auto()
    GENERATOR = enum.auto()
    ASYNC_GENERATOR = enum.auto()

    @staticmethod
    def of(function: Callable[..., Any]) -> Kind:
        if is_async(function):
            return Kind.ASYNC
        if is_generator(function):
            return Kind.GENERATOR
        if is_async_generator(function):
            return Kind.ASYNC_GENERATOR
        return Kind.SYNC


class Step(NamedTuple):
    """A call that fills one slot."""

    name: str
    kind: Kind
    invoke: Callable[[Slots], Any]


def bind(function: Callable[..., Any], positional: Sequence[int], keywords: dict[str, int]) -> Callable[[Slots], Any]:
    """A call of `function` with its arguments taken from slots."""
    if keywords:
        items = tuple(keywords.items())
        return lambda slots: function(*[slots[i] for i in positional], **{name: slots[i] for name, i in items})
    if not positional:
        return lambda slots: function()
    if len(positional) == 1:
        only = positional[0]
        return lambda slots: function(slots[only])
    pick = itemgetter(*positional)
    return lambda slots: function(*pick(slots))


async def open_all(steps: Sequence[Step], slots: Slots, opened: Opened) -> None:
    """Run the steps; generators that are to be closed are added to `opened` as they open."""
    for name, kind, invoke in steps:
        value = invoke(slots)
        if kind is Kind.ASYNC:
            value = await value
        elif kind is Kind.ASYNC_GENERATOR:
            opened.append((name, value))
            value = await anext(value, _NOTHING)
        elif kind is Kind.GENERATOR:
            opened.append((name, value))
            value = next(value, _NOTHING)
        elif type(value) is CoroutineType:  # a lambda, or a decorator, that hides an `async def`
            value = await value
        if value is _NOTHING:
            raise RuntimeError(f"dependency `{name}` did not yield")
        slots.append(value)


async def close_all(opened: Opened, error: BaseException | None) -> BaseException | None:
    """Close in reverse order. Returns what is to be raised in the end, if anything."""
    for name, generator in reversed(opened):
        traceback = None if error is None else error.__traceback__
        try:
            if type(generator) is GeneratorType:
                _resume(generator, error)
            else:
                await _resume_async(generator, error)
        except (StopIteration, StopAsyncIteration):
            continue
        except BaseException as raised:
            error = _without_detour(raised, error, traceback)
        else:
            error = _twice(name, error)
    try:
        return error
    finally:
        del error  # or its traceback would hold this frame, and this frame it


def open_all_in_thread(steps: Sequence[Step], slots: Slots, opened: Opened) -> None:
    """As `open_all`, where there is nothing to await."""
    for name, kind, invoke in steps:
        value = invoke(slots)
        if kind is Kind.GENERATOR:
            opened.append((name, value))
            value = next(value, _NOTHING)
            if value is _NOTHING:
                raise RuntimeError(f"dependency `{name}` did not yield")
        else:
            no_coroutine(value, name)
        slots.append(value)


def close_all_in_thread(opened: Opened, error: BaseException | None) -> BaseException | None:
    """As `close_all`, where there is nothing to await."""
    for name, generator in reversed(opened):
        traceback = None if error is None else error.__traceback__
        try:
            _resume(generator, error)
        except StopIteration:
            continue
        except BaseException as raised:
            error = _without_detour(raised, error, traceback)
        else:
            error = _twice(name, error)
    try:
        return error
    finally:
        del error


def no_coroutine(value: Any, name: str) -> None:
    if type(value) is CoroutineType:
        value.close()
        raise TypeError(
            f"`{name}` runs in a thread and returned a coroutine: make it, or what decorates it, `async def`"
        )


def _resume(generator: Generator[Any, None, Any], error: BaseException | None) -> None:
    if error is None:
        next(generator)
    else:
        generator.throw(error)


async def _resume_async(generator: AsyncGenerator[Any, None], error: BaseException | None) -> None:
    if error is None:
        await anext(generator)
    else:
        await generator.athrow(error)


def _without_detour(
    raised: BaseException, error: BaseException | None, traceback: TracebackType | None
) -> BaseException:
    """What was raised; if it is the failure itself, its traceback leaves out the way through the generator."""
    return raised.with_traceback(traceback) if raised is error else raised


def _twice(name: str, error: BaseException | None) -> BaseException:
    raised = RuntimeError(f"dependency `{name}` yielded twice")
    raised.__cause__ = error
    return raised
