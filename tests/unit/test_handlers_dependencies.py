"""What `Depends` names: opened, shared, nested, overridden and closed."""

# ruff: noqa: B008  (a marker as a default is what is tested)

import functools
import gc
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import fast_depends
import fastapi
import pytest
from pydantic import BaseModel

from carteiro.errors import InvalidBody, InvalidHandler
from carteiro.handlers.injected import Emit, Logger
from carteiro.handlers.markers import Body, Depends, Header, Topic
from carteiro.handlers.plan import compile_plan
from carteiro.handlers.running import Called
from carteiro.message import Message


class Order(BaseModel):
    id: int


class Boom(Exception):
    pass


def message(body: bytes = b'{"id": 1}', **headers: str) -> Message:
    return Message("m1", "orders", body, None, headers, "c1", 0.0)


async def call(function: Callable[..., Any], received: Message | None = None, **options: Any) -> Any:
    return await compile_plan(function, topic="orders", **options).call(received or message())


events: list[str] = []


@pytest.fixture(autouse=True)
def _forget() -> None:
    events.clear()


async def session() -> AsyncIterator[str]:
    events.append("open session")
    try:
        yield "session"
    except Boom as error:
        events.append(f"session saw {error}")
        raise
    finally:
        events.append("close session")


def unit(session: Annotated[str, Depends(session)]) -> Iterator[str]:
    events.append("open unit")
    try:
        yield f"unit of {session}"
    except Boom as error:
        events.append(f"unit saw {error}")
        raise
    finally:
        events.append("close unit")


def plain() -> str:
    events.append("plain")
    return "plain"


async def awaited() -> str:
    events.append("awaited")
    return "awaited"


def hides_async() -> Any:
    return awaited()


class Settings:
    def __init__(self, region: str = "br") -> None:
        self.region = region

    def scaled(self, by: Annotated[int, Header()]) -> int:
        return by * 2

    async def __call__(self, by: int = Header()) -> int:
        return by * 3


async def test_functions_and_generators_async_or_not_are_injected() -> None:
    async def handle(
        order: Order,
        a: Annotated[str, Depends(plain)],
        b: Annotated[str, Depends(awaited)],
        c: str = Depends(unit),
    ) -> Any:
        return order.id, a, b, c

    assert await call(handle) == (1, "plain", "awaited", "unit of session")


async def test_classes_instances_methods_partials_and_lambdas_are_called() -> None:
    async def handle(
        settings: Annotated[Settings, Depends()],
        scaled: int = Depends(Settings().scaled),
        called: int = Depends(Settings()),
        partial: Settings = Depends(functools.partial(Settings, region="us")),
        empty: dict[str, int] = Depends(dict),
        hidden: str = Depends(hides_async),
    ) -> Any:
        return settings.region, scaled, called, partial.region, empty, hidden

    assert await call(handle, message(by="5")) == ("br", 10, 15, "us", {}, "awaited")


async def test_the_depends_of_others_are_accepted_as_they_are() -> None:
    async def handle(
        a: Annotated[str, fastapi.Depends(unit)],
        b: Annotated[str, fast_depends.Depends(plain)],
        c: str = fastapi.Depends(awaited),
        d: str = fast_depends.Depends(plain, use_cache=False),
        e: str = fastapi.Security(plain),
    ) -> Any:
        return a, b, c, d, e

    assert await call(handle) == ("unit of session", "plain", "awaited", "plain", "plain")
    assert events.count("plain") == 2


def test_an_option_that_only_fastapi_can_keep_is_refused() -> None:
    async def handle(a: str = fastapi.Depends(plain, max_concurrency=2)) -> None: ...

    with pytest.raises(InvalidHandler, match="max_concurrency"):
        compile_plan(handle, topic="t")


async def test_they_close_in_reverse_order_after_the_handler() -> None:
    async def handle(unit: str = Depends(unit)) -> None:
        events.append("handle")

    await call(handle)

    assert events == ["open session", "open unit", "handle", "close unit", "close session"]


async def test_they_see_the_handlers_failure() -> None:
    async def handle(unit: str = Depends(unit)) -> None:
        raise Boom("no stock")

    with pytest.raises(Boom, match="no stock"):
        await call(handle)

    assert events[2:] == ["unit saw no stock", "close unit", "session saw no stock", "close session"]


async def test_a_dependency_that_fails_to_open_closes_those_before_it() -> None:
    def fails(unit: str = Depends(unit)) -> str:
        raise Boom("no connection")

    async def handle(fails: str = Depends(fails)) -> None:
        events.append("handle")

    with pytest.raises(Boom):
        await call(handle)

    assert "handle" not in events
    assert events[-1] == "close session"


async def test_a_dependency_cannot_swallow_a_failure() -> None:
    async def swallows() -> AsyncIterator[int]:
        try:
            yield 1
        except Boom:
            events.append("swallowed")

    async def handle(n: int = Depends(swallows)) -> None:
        raise Boom("no stock")

    with pytest.raises(Boom, match="no stock"):
        await call(handle)
    assert events == ["swallowed"]


async def test_a_commit_that_fails_fails_the_message_and_the_others_see_it() -> None:
    def commits(session: str = Depends(session)) -> Iterator[int]:
        yield 1
        raise Boom("disk full")

    async def handle(n: int = Depends(commits)) -> str:
        return "done"

    with pytest.raises(Boom, match="disk full"):
        await call(handle)
    assert events == ["open session", "session saw disk full", "close session"]


@pytest.mark.parametrize("whole_thread", [False, True])
async def test_a_generator_that_yields_not_once_is_an_error(whole_thread: bool) -> None:
    def never() -> Iterator[int]:
        yield from ()

    def twice() -> Iterator[int]:
        yield 1
        yield 2

    def handle_never(n: int = Depends(never)) -> None: ...

    def handle_twice(n: int = Depends(twice)) -> None: ...

    options: dict[str, Any] = {"whole_thread": True, "call_sync": here} if whole_thread else {}

    with pytest.raises(RuntimeError, match="`never` did not yield"):
        await call(handle_never, **options)
    with pytest.raises(RuntimeError, match="`twice` yielded twice"):
        await call(handle_twice, **options)


async def here(function: Callable[..., Any], /, *args: Any) -> Any:
    return function(*args)


async def test_one_is_called_once_for_a_message_unless_it_asks_otherwise() -> None:
    def a(plain: str = Depends(plain)) -> str:
        return plain

    async def handle(
        first: str = Depends(plain),
        second: str = Depends(a),
        third: str = Depends(plain, use_cache=False),
    ) -> None: ...

    plan = compile_plan(handle, topic="t")
    await plan.call(message())
    assert events == ["plain", "plain"]

    await plan.call(message())
    assert events == ["plain"] * 4


async def test_the_body_is_decoded_before_anything_is_opened() -> None:
    async def handle(session: str = Depends(session), order: Order = Body()) -> None: ...

    with pytest.raises(InvalidBody):
        await call(handle, message(b"{}"))
    assert events == []


async def test_a_dependency_takes_what_a_handler_takes() -> None:
    def order_of(order: Annotated[Order, Body()], tenant: Annotated[str, Header()], message: Message) -> Any:
        return order.id, tenant, message.id

    def tell(logger: Logger, audit: Annotated[Emit[str], Topic("audit")], rest: int = 3) -> Iterator[None]:
        yield
        audit("closed")

    async def handle(found: Annotated[Any, Depends(order_of)], told: None = Depends(tell)) -> Any:
        return found

    plan = compile_plan(handle, topic="orders")
    called = await plan.call(message(tenant="br"))

    assert plan.emits
    assert isinstance(called, Called)
    assert called.result == (1, "br", "m1")
    assert [one.value for one in called.emitted] == ["closed"]


async def test_an_override_replaces_also_nested_ones() -> None:
    def fake(order: Annotated[Order, Body()]) -> str:
        return f"fake for {order.id}"

    async def handle(unit: str = Depends(unit)) -> str:
        return unit

    assert await call(handle, overrides={session: fake}) == "unit of fake for 1"
    assert await call(handle, overrides={unit: lambda: "none"}) == "none"


async def test_a_mock_will_do_as_an_override() -> None:
    def anything(*args: Any, **kwargs: Any) -> str:
        return "anything"

    async def handle(unit: str = Depends(unit)) -> str:
        return unit

    assert await call(handle, overrides={unit: anything}) == "anything"


def test_a_parameter_of_a_dependency_must_say_where_it_comes_from() -> None:
    def needs(url: str) -> str: ...  # type: ignore[empty-body]

    async def handle(needs: str = Depends(needs)) -> None: ...

    with pytest.raises(InvalidHandler) as caught:
        compile_plan(handle, topic="t")

    text = str(caught.value)
    assert "handler `handle` (" in text
    assert "dependency `needs` (" in text
    assert "parameter `url`" in text


def circle_a(b: Any = Depends(lambda: None)) -> None: ...
def circle_b(a: Any = Depends(circle_a)) -> None: ...


def test_a_dependency_on_itself_is_refused() -> None:
    async def handle(a: Any = Depends(circle_b)) -> None: ...

    with pytest.raises(InvalidHandler, match="depends on itself: circle_b -> circle_a -> circle_b"):
        compile_plan(handle, topic="t", overrides={circle_a.__defaults__[0].dependency: circle_b})  # type: ignore[index]


async def test_a_failure_keeps_nothing_alive() -> None:
    class Large:
        pass

    made: list[weakref.ref[Large]] = []

    def large() -> Large:
        value = Large()
        made.append(weakref.ref(value))
        return value

    async def handle(large: Large = Depends(large), session: str = Depends(session)) -> None:
        raise Boom("no stock")

    plan = compile_plan(handle, topic="t")
    gc.disable()
    try:
        with pytest.raises(Boom):
            await plan.call(message())
        assert made[0]() is None
    finally:
        gc.enable()


async def test_the_traceback_of_a_failure_leaves_out_the_closing() -> None:
    async def handle(unit: str = Depends(unit)) -> None:
        raise Boom("no stock")

    with pytest.raises(Boom) as caught:
        await call(handle)

    assert [entry.name for entry in caught.traceback][-1] == "handle"
    assert "unit" not in [entry.name for entry in caught.traceback]
