"""Where a handler runs: on the loop, in one hop to a thread, in a process. And batches."""

import asyncio
import functools
import multiprocessing
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from carteiro.errors import InvalidBody, InvalidHandler
from carteiro.handlers.injected import Emit, Emitted, Logger
from carteiro.handlers.markers import Depends, Header, Path, Topic
from carteiro.handlers.plan import compile_batch_plan, compile_plan
from carteiro.handlers.running import Called
from carteiro.message import NO_HEADERS, Message


class Order(BaseModel):
    id: int


class Boom(Exception):
    pass


class Pool:
    """An executor as the engine hands it to a plan, counting the hops."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.hops = 0

    def __call__(self, function: Callable[..., Any], /, *args: Any) -> Awaitable[Any]:
        self.hops += 1
        return asyncio.get_running_loop().run_in_executor(self.executor, functools.partial(function, *args))


@pytest.fixture
def threads() -> Iterator[Pool]:
    with ThreadPoolExecutor(4) as executor:
        yield Pool(executor)


@pytest.fixture(scope="module")
def processes() -> Iterator[Pool]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield Pool(executor)


def message(body: bytes = b'{"id": 1}', id: str = "m1") -> Message:
    return Message(id, "orders", body, None, NO_HEADERS, "c1", 0.0)


where: list[tuple[str, int]] = []


@pytest.fixture(autouse=True)
def _forget() -> None:
    where.clear()


def here(what: str) -> None:
    where.append((what, threading.get_ident()))


def session() -> Iterator[str]:
    here("open")
    try:
        yield "session"
    except Boom:
        here("failed")
        raise
    finally:
        here("close")


async def test_a_sync_handler_shares_one_hop_with_its_dependencies(threads: Pool) -> None:
    def handle(order: Order, session: str = Depends(session)) -> Any:
        here("handle")
        return order.id, session

    plan = compile_plan(handle, topic="orders", call_sync=threads, whole_thread=True)

    assert await plan.call(message()) == (1, "session")
    assert [what for what, _ in where] == ["open", "handle", "close"]
    assert len({thread for _, thread in where}) == 1
    assert where[0][1] != threading.get_ident()
    assert threads.hops == 1


async def test_a_failure_in_a_thread_is_seen_by_its_dependencies(threads: Pool) -> None:
    def handle(session: str = Depends(session)) -> None:
        raise Boom

    plan = compile_plan(handle, topic="orders", call_sync=threads, whole_thread=True)

    with pytest.raises(Boom):
        await plan.call(message())
    assert [what for what, _ in where] == ["open", "failed", "close"]


async def test_a_body_is_decoded_in_the_thread_and_refused_from_there(threads: Pool) -> None:
    def handle(order: Order) -> Any:
        return order

    plan = compile_plan(handle, topic="orders", call_sync=threads, whole_thread=True)

    assert await plan.call(message()) == Order(id=1)
    with pytest.raises(InvalidBody, match="id: Field required"):
        await plan.call(message(b"{}"))


async def test_async_dependencies_stay_on_the_loop_and_only_the_handler_hops(threads: Pool) -> None:
    async def connection() -> AsyncIterator[str]:
        here("open")
        yield "connection"
        here("close")

    def handle(order: Order, connection: str = Depends(connection)) -> Any:
        here("handle")
        return connection

    plan = compile_plan(handle, topic="orders", call_sync=threads, whole_thread=True)

    assert await plan.call(message()) == "connection"
    assert [what for what, thread in where if thread == threading.get_ident()] == ["open", "close"]
    assert threads.hops == 1


async def test_an_async_handler_never_hops(threads: Pool) -> None:
    async def handle(order: Order, session: str = Depends(session)) -> int:
        return order.id

    plan = compile_plan(handle, topic="orders", call_sync=threads, whole_thread=True)

    assert await plan.call(message()) == 1
    assert threads.hops == 0


async def test_emitted_values_come_back_from_the_thread(threads: Pool) -> None:
    def handle(order: Order, emit: Annotated[Emit[int], Topic("done")]) -> str:
        emit(order.id)
        return "ok"

    plan = compile_plan(handle, topic="orders", call_sync=threads, whole_thread=True)

    assert await plan.call(message()) == Called("ok", [Emitted("done", 1, None, {}, 0.0)])


def hiding(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


@hiding
async def hidden(order: Order) -> int:
    return order.id


async def test_a_decorator_that_hides_an_async_def_loses_nothing(threads: Pool) -> None:
    assert await compile_plan(hidden, topic="t").call(message()) == 1
    assert await compile_plan(hidden, topic="t", call_sync=threads, whole_thread=True).call(message()) == 1


async def test_a_coroutine_where_a_session_would_be_closed_is_an_error(threads: Pool) -> None:
    @hiding
    async def handle(session: str = Depends(session)) -> None: ...

    plan = compile_plan(handle, topic="t", call_sync=threads, whole_thread=True)

    with pytest.raises(TypeError, match="returned a coroutine"):
        await plan.call(message())


# -- processes -----------------------------------------------------------------------------------------------------


def region() -> str:
    return "br"


def in_process(order: Order, *, region: str = Depends(region), message: Message, logger: Logger) -> Any:
    return order.id, region, message.id, type(logger).__name__, multiprocessing.parent_process() is not None


def takes_a_lock(lock: Any = Depends(threading.Lock)) -> None: ...


def fails_there(order: Order) -> None:
    raise TypeError("its own fault")


async def test_only_the_function_and_its_arguments_go_to_a_process(processes: Pool) -> None:
    plan = compile_plan(in_process, topic="orders", call_sync=processes)

    assert await plan.call(message()) == (1, "br", "m1", "Logger", True)


async def test_an_argument_that_cannot_go_there_is_named(processes: Pool) -> None:
    plan = compile_plan(takes_a_lock, topic="orders", call_sync=processes)

    with pytest.raises(InvalidHandler, match=r"handler `takes_a_lock` .* argument of type `lock` cannot be sent"):
        await plan.call(message())


async def test_the_handlers_own_errors_come_back_as_they_are(processes: Pool) -> None:
    plan = compile_plan(fails_there, topic="orders", call_sync=processes)

    with pytest.raises(TypeError, match="its own fault"):
        await plan.call(message())


def with_session(session: str = Depends(session)) -> None: ...
def with_emit(emit: Annotated[Emit[int], Topic("a")]) -> None: ...
async def is_async(order: Order) -> None: ...


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (with_session, "dependency `session` yields"),
        (with_emit, "`Emit` does not reach"),
        (is_async, "is async"),
        (lambda order: None, "define it at module level"),
    ],
)
def test_what_cannot_be_split_between_processes_is_refused(function: Callable[..., Any], words: str) -> None:
    async def never(function: Callable[..., Any], /, *args: Any) -> Any: ...

    with pytest.raises(InvalidHandler, match=words):
        compile_plan(function, topic="orders", call_sync=never)


# -- batches -------------------------------------------------------------------------------------------------------

MESSAGES = [message(b'{"id": 1}', "m1"), message(b'{"id": 2}', "m2")]


async def test_a_batch_is_decoded_one_by_one_and_handled_at_once() -> None:
    async def bulk(
        orders: list[Order],
        messages: list[Message],
        logger: Logger,
        emit: Annotated[Emit[int], Topic("done")],
        session: str = Depends(session),
    ) -> Any:
        here("handle")
        emit(len(orders))
        return [order.id for order in orders], [one.id for one in messages], session

    plan = compile_batch_plan(bulk, topic="orders")
    called = await plan.call(MESSAGES, [plan.decode(one) for one in MESSAGES])

    assert (plan.name, plan.body_type, plan.emits) == (bulk.__qualname__.rpartition(".")[2], Order, True)
    assert called == Called(([1, 2], ["m1", "m2"], "session"), [Emitted("done", 2, None, {}, 0.0)])
    assert [what for what, _ in where] == ["open", "handle", "close"]


def test_one_bad_body_of_a_batch_is_refused_alone() -> None:
    async def bulk(orders: Sequence[Order]) -> None: ...

    plan = compile_batch_plan(bulk, topic="orders")

    assert plan.decode(MESSAGES[0]) == Order(id=1)
    with pytest.raises(InvalidBody, match="id: Field required"):
        plan.decode(message(b"{}"))


async def test_a_batch_without_types_gets_what_the_bodies_look_like() -> None:
    async def untyped(items: list) -> Any:  # type: ignore[type-arg]
        return items

    async def only_messages(messages: list[Message]) -> Any:
        return len(messages)

    plan = compile_batch_plan(untyped, topic="t")
    assert await plan.call(MESSAGES, [plan.decode(one) for one in MESSAGES]) == [{"id": 1}, {"id": 2}]

    plan = compile_batch_plan(only_messages, topic="t")
    assert plan.decode(message(b"\xff")) is None
    assert await plan.call(MESSAGES, [None, None]) == 2


def ids(orders: list[Order], messages: list[Message]) -> list[tuple[int, str]]:
    return [(order.id, one.id) for order, one in zip(orders, messages, strict=True)]


async def test_a_batch_runs_in_a_thread_and_in_a_process(threads: Pool, processes: Pool) -> None:
    values = [Order(id=1), Order(id=2)]

    for pool, whole_thread in ((threads, True), (processes, False)):
        plan = compile_batch_plan(ids, topic="t", call_sync=pool, whole_thread=whole_thread)
        assert await plan.call(MESSAGES, values) == [(1, "m1"), (2, "m2")]


async def one_order(order: Order) -> None: ...
async def two_lists(a: list[Order], b: list[int]) -> None: ...
async def header(orders: list[Order], tenant: Annotated[str, Header()]) -> None: ...
async def path(orders: list[Order], level: Annotated[str, Path()]) -> None: ...
async def one_message(orders: list[Order], message: Message) -> None: ...
async def bad_items(things: list[threading.Thread]) -> None: ...


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (one_order, "takes its bodies as `list"),
        (two_lists, "one parameter for the bodies"),
        (header, "no headers of its own"),
        (path, "no topic of its own"),
        (one_message, "one parameter for the bodies"),
        (bad_items, "items of its list"),
    ],
)
def test_a_batch_handler_that_cannot_work_is_refused(function: Callable[..., Any], words: str) -> None:
    with pytest.raises(InvalidHandler, match=words):
        compile_batch_plan(function, topic="logs.{level}")
