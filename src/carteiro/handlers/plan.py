"""A handler compiled to a plan: what it takes to call it for one message, or for a batch.

This is the hot path, and a handler pays for what it uses: one with a body and nothing else becomes
`lambda message: function(decode(message))`, without a coroutine of ours; one whose dependencies are no generators has
no `try`; nothing looks at a signature, a context variable or a thread unless the handler asked for it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from carteiro.errors import InvalidHandler
from carteiro.handlers.codecs import decoder
from carteiro.handlers.dependencies import Kind
from carteiro.handlers.markers import TopicMarker
from carteiro.handlers.running import (
    CallSync,
    across,
    arguments,
    as_it_is,
    check_process,
    in_thread,
    inline,
    on_loop,
    prepare,
    whole,
)
from carteiro.handlers.signature import describe, is_async, is_async_generator, is_generator, name_of, place_of
from carteiro.handlers.sources import BatchSources, MessageSources, Sources
from carteiro.handlers.wiring import Call, Function, Wiring
from carteiro.message import Message


@dataclass(frozen=True, slots=True)
class Plan:
    """A compiled handler.

    `call` decodes, injects, calls and closes, and gives what the handler returned, or `Called` if `emits`. It raises
    InvalidBody either when called or when awaited. `place` is file and line, `body_type` what the body is decoded to
    (None where nothing is), `returns` the annotation of what is returned (Any where there is none). `emits_to` says
    where its `Emit`s go.
    """

    name: str
    place: str
    call: Callable[[Message], Coroutine[Any, Any, Any]]
    emits: bool
    body_type: Any
    returns: Any
    emits_to: tuple[TopicMarker, ...] = ()


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """A compiled batch handler: `decode` each message, which raises InvalidBody for that one only, then `call` it once.

    `body_type` is of one body.
    """

    name: str
    place: str
    decode: Callable[[Message], Any]
    call: Callable[[Sequence[Message], Sequence[Any]], Coroutine[Any, Any, Any]]
    emits: bool
    body_type: Any
    returns: Any
    emits_to: tuple[TopicMarker, ...] = ()


def compile_plan(
    function: Function,
    *,
    topic: str,
    overrides: Mapping[Function, Function] | None = None,
    call_sync: CallSync | None = None,
    whole_thread: bool = False,
    localns: Mapping[str, Any] | None = None,
    by_name: bool = False,
    remote: Function | None = None,
) -> Plan:
    """Compile `function` as a handler of the messages of `topic`, a name or a pattern.

    `overrides` replaces dependencies, nested ones too. A sync function runs by `call_sync`, and on the loop without it.
    With `whole_thread`, `call_sync` is a pool of threads: where nothing is async, decoding, dependencies and handler
    share one hop, so that a session lives in one thread. Without, it is a pool of processes: only the function and its
    arguments go there, and must be such as can be pickled. `localns` is for annotations that are strings (see
    `caller_locals`). With `by_name` a lone parameter is a field of the body as several are. `remote` is what is called
    in a process, where that is found under the function's name in place of it. Raises InvalidHandler.
    """
    sources = MessageSources(topic, name_of(function))
    wiring = Wiring(sources, overrides or {}, localns, by_name)
    call, run = _compile(function, wiring, sources, call_sync, whole_thread, remote)
    return Plan(
        name_of(function),
        place_of(function),
        run,
        wiring.emitted is not None,
        call.body_type,
        call.returns,
        tuple(wiring.emits_to),
    )


def compile_batch_plan(
    function: Function,
    *,
    topic: str,
    overrides: Mapping[Function, Function] | None = None,
    call_sync: CallSync | None = None,
    whole_thread: bool = False,
    localns: Mapping[str, Any] | None = None,
) -> BatchPlan:
    """As `compile_plan`, for a handler of many: `list[T]` for the bodies, `list[Message]`, Logger, Depends and Emit."""
    sources = BatchSources(topic, name_of(function))
    wiring = Wiring(sources, overrides or {}, localns)
    call, run = _compile(function, wiring, sources, call_sync, whole_thread)
    body_type: Any = None
    decode: Callable[[Message], Any] = _nothing
    if call.body_type is not None:
        body_type = (get_args(call.body_type) or (Any,))[0]
        try:
            decode = decoder(body_type)
        except TypeError as error:
            raise InvalidHandler(
                f"handler {describe(function)}: no body can be decoded into the items of its list ({error})"
            ) from error
    return BatchPlan(
        name_of(function),
        place_of(function),
        decode,
        lambda messages, values: run((messages, values)),
        wiring.emitted is not None,
        body_type,
        call.returns,
        tuple(wiring.emits_to),
    )


def _nothing(message: Message) -> None:
    return None


def _compile(
    function: Function,
    wiring: Wiring,
    sources: Sources,
    call_sync: CallSync | None,
    whole_thread: bool,
    remote: Function | None = None,
) -> tuple[Call, Callable[[Any], Coroutine[Any, Any, Any]]]:
    where = f"handler {describe(function)}"
    if is_generator(function) or is_async_generator(function):
        raise InvalidHandler(f"{where} yields: a handler returns its result, and publishes several through `Emit`")
    in_process = call_sync is not None and not whole_thread
    if in_process and is_async(function):
        raise InvalidHandler(f"{where} is async and cannot run in a process: make it a plain `def`")
    call = wiring.read(function, where)
    if call_sync is not None and in_process:
        there = remote or function
        check_process(wiring, there, where)
        ready = prepare(call, wiring, function=arguments, carry=sources.portable)
        return call, on_loop(ready, across(call_sync, there, where))
    ready = prepare(call, wiring)
    if is_async(function):
        return call, on_loop(ready, as_it_is)
    if call_sync is None:
        return call, on_loop(ready, inline)
    hop = in_thread(call_sync)
    if all(step.kind in (Kind.SYNC, Kind.GENERATOR) for step in ready.steps):
        return call, hop(whole(ready))
    return call, on_loop(ready, hop)
