"""Steps within a task, and waiting for events.

A *step* is a call whose result is kept: a task that is tried again, or taken over from a worker that died, does not
make the call again but gets what it had returned. So a task goes on after the last step that it has finished.

    async def order(id: int) -> None:
        payment = await step("charge", charge, id)
        await wait_for("orders.paid", key=str(id), timeout="7d")
        await step("ship", ship, id)

A step is done when its result is in the store. A crash before that repeats the step, as it repeats a task: make what it
does safe to repeat, or let the other side tell repetitions by `Message.id`. Of two attempts that both come to make one
step, as where a worker was frozen, the first result counts for both.

*Waiting for an event* ends the delivery, and holds no worker. The task leaves a *waiter* in the store; with a timeout,
its message stays in the broker as the alarm. The app subscribes to the event's topic, as the group `<app>.waits`; when
an event comes whose key is the waiter's, its body becomes the step's result, and a copy of the message goes out that
takes the task up again. The copy has a higher number in its header `resume` than the alarm, which is known by that to
be late when it comes. Events are kept for a day by their keys, so that one that came while the task was on its way to
wait for it is not missed: it counts if it was published after the task was.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any, Final, ParamSpec, TypeVar, overload

import msgspec

from carteiro.durations import Duration, seconds
from carteiro.errors import CarteiroError, InvalidBody, InvalidHandler, Unencodable
from carteiro.handlers.codecs import decoder
from carteiro.handlers.signature import name_of, read_signature
from carteiro.message import CONTENT_TYPE, NO_HEADERS, Message, Write
from carteiro.ports.store import Entry
from carteiro.tasks.context import Context, current_bench
from carteiro.tasks.records import ALARM, BEGAN, RESUME, RUN_TTL, step_key
from carteiro.tasks.values import read, written

P = ParamSpec("P")
T = TypeVar("T")

FOREVER: Final = 365 * 86_400.0
"""Seconds for which it is kept that a task waits which gives no timeout."""


class Paused(BaseException):
    """Raised through a task that waits for an event: not for it to catch."""

    def __init__(self, topic: str, delay: float, until: float | None) -> None:
        super().__init__(f"waits for `{topic}`")
        self.topic = topic
        self.delay = delay
        self.until = until


class EventTimeout(CarteiroError, TimeoutError):
    """`wait_for` has waited for its timeout, and the event did not come."""


class Waiter(msgspec.Struct, frozen=True, array_like=True):
    """Who waits for an event: all that it takes to go on."""

    id: str
    topic: str
    """Where the task's message goes."""
    key: str | None
    """The event's key; None for any."""
    step: str
    """Where the event's body is put."""
    until: float | None
    body: bytes
    headers: dict[str, str]
    message_key: str | None
    correlation_id: str
    resumed: int
    heard: tuple[str, ...] = ()
    """The ids of the events that it has waited for before: one that is delivered twice is no other."""


class Happened(msgspec.Struct, frozen=True, array_like=True):
    """An event as a step's result, or as it is kept for those who come late; `body` None is a timeout."""

    at: float
    body: bytes | None
    content_type: str | None = None
    id: str = ""


def waiters_prefix(topic: str, key: str | None) -> str:
    return f"wait:{topic}:{'*' if key is None else '=' + key}:"


def event_key(topic: str, key: str | None) -> str:
    return f"event:{topic}:{'*' if key is None else '=' + key}"


happened_of: Final = msgspec.msgpack.Decoder(Happened).decode
waiter_of: Final = msgspec.msgpack.Decoder(Waiter).decode
pack: Final = msgspec.msgpack.Encoder().encode


@overload
async def step(name: str, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...  # pyright: ignore[reportOverlappingOverload]


@overload
async def step(name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...


async def step(name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call `function`, sync or async, unless an earlier attempt of this task has done so: then return its result.

    What it returns must be such that a body can hold it, and comes back as its annotation says, also the first time. A
    name that is used again, as in a loop, stands for another step each time; so the order of the steps must not depend
    on what is not the same when the task is tried again. An error is the task's, and nothing is kept of it. Raises
    ConfigurationError outside of a task that keeps something.
    """
    context, bench = current_bench("step(…)")
    key = step_key(context.id, _numbered(context, name))
    entry = (await bench.get((key,))).get(key)
    if entry is None:
        result = function(*args, **kwargs)
        if inspect.isawaitable(result):
            result = await result
        value = _written(name, result)
        if (await bench.store.write([Write(key, value, ttl=RUN_TTL, expect=0)]))[0]:
            return _read(name, value, function)
        entry = (await bench.store.get((key,)))[key]
    return _read(name, entry.value, function)


async def wait_for(topic: str, *, key: str | None = None, timeout: Duration | None = None, returns: Any = Any) -> Any:
    """Return the body, as `returns`, of the next event of `topic` with this key (None: with any) that was published
    since this task was and that it has not waited for before; of several that are there already, the last.

    If there is none yet, this ends the attempt, which counts as none, and the task is taken up again when it comes:
    what comes before must be in steps, for it runs again. Raises EventTimeout, a TimeoutError, after `timeout`.
    """
    context, bench = current_bench("wait_for(…)")
    message, store = context.delivery.message, bench.store
    name = _numbered(context, f"wait_for {topic}")
    step_at, waiter_at = step_key(context.id, name), f"{waiters_prefix(topic, key)}{context.id}:{name}"
    kept_at = event_key(topic, key)
    since = float(message.headers.get(BEGAN, message.published))

    def kept(found: Mapping[str, Entry]) -> Happened | None:
        """The event, if it has come already."""
        happened = happened_of(found[kept_at].value) if kept_at in found else None
        return happened if happened is not None and happened.at >= since and happened.id not in context.heard else None

    async def decided(happened: Happened) -> Any:
        """Have this be what came of waiting, unless something else is already."""
        if not (await store.write([Write(step_at, pack(happened), ttl=RUN_TTL, expect=0)]))[0]:
            happened = happened_of((await store.get((step_at,)))[step_at].value)
        await store.write([Write(waiter_at, None)])
        return _event(context, happened, topic, key, returns)

    found = await bench.get((step_at, waiter_at, kept_at))
    if step_at in found:
        return _event(context, happened_of(found[step_at].value), topic, key, returns)
    now = bench.clock.time()
    if waiter_at in found:
        until = waiter_of(found[waiter_at].value).until
    elif (happened := kept(found)) is not None:
        return await decided(happened)
    else:
        await bench.listen(topic)
        until = None if timeout is None else now + seconds(timeout)
        headers = {**message.headers, BEGAN: repr(since)}
        if until is not None:
            headers[ALARM] = repr(max(until, float(headers.get(ALARM, until))))
        waiter = Waiter(
            context.id, message.topic, key, step_at, until, message.body, headers,
            message.key, message.correlation_id, int(message.headers.get(RESUME, 0)), tuple(context.heard),
        )  # fmt: skip
        lasts = FOREVER if until is None else until - now
        await store.write([Write(waiter_at, pack(waiter), ttl=RUN_TTL + lasts)])
        # Whoever tells an event keeps it first and looks for waiters then: one of the two sees the other.
        if (happened := kept(await store.get((kept_at,)))) is not None:
            return await decided(happened)
    if until is not None and until <= now:
        return await decided(Happened(now, None))
    raise Paused(topic, FOREVER if until is None else until - now, until)


def _event(context: Context, happened: Happened, topic: str, key: str | None, returns: Any) -> Any:
    if happened.body is None:
        what = f"`{topic}`" if key is None else f"`{topic}` with the key `{key}`"
        raise EventTimeout(f"no {what} came in time")
    context.heard.append(happened.id)
    headers = NO_HEADERS if happened.content_type is None else {CONTENT_TYPE: happened.content_type}
    try:
        return _decoder(returns)(Message("", topic, happened.body, key, headers, "", happened.at))
    except InvalidBody as error:
        raise InvalidBody(f"the event of `{topic}` is not what wait_for(returns=…) says: {error}") from error


def _numbered(context: Context, name: str) -> str:
    number = context.names.get(name, 0)
    context.names[name] = number + 1
    return name if number == 0 else f"{name}#{number + 1}"


def _written(name: str, value: Any) -> bytes:
    try:
        return written(value)
    except Unencodable as error:
        raise Unencodable(f"step `{name}` returned what cannot be kept: {error}") from error


def _read(name: str, value: bytes, function: Callable[..., Any]) -> Any:
    """What the step has returned, as its function's annotation says; some, such as builtins, have none."""
    try:
        returns = read_signature(function, f"step `{name}`", lenient=True).returns
    except InvalidHandler:  # it has been called, all the same
        returns = Any
    try:
        return read(value, returns)
    except InvalidBody as error:
        raise InvalidBody(
            f"what step `{name}` returned is not what `{name_of(function)}` says it returns: {error}"
        ) from error


@lru_cache(maxsize=512)
def _decoder(annotation: Any) -> Callable[[Message], Any]:
    return decoder(annotation)
