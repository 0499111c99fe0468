"""A handler's parameters: from where they come, and what is refused when the plan is compiled."""

# ruff: noqa: B008  (a marker as a default is what is tested)

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import msgspec
import pytest
from pydantic import BaseModel, Field

from carteiro.errors import InvalidBody, InvalidHandler
from carteiro.handlers.injected import Emit, Emitted, Logger
from carteiro.handlers.markers import Body, Depends, Header, Path, Topic
from carteiro.handlers.plan import compile_plan
from carteiro.handlers.running import Called
from carteiro.handlers.signature import caller_locals
from carteiro.message import CONTENT_TYPE, Message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator as OnlyForTheChecker


class Order(BaseModel):
    id: int
    sku: str


class Parcel(msgspec.Struct):
    id: int


class Track(TypedDict):
    id: int


@dataclass
class Point:
    id: int


def message(body: bytes = b"", *, topic: str = "orders", headers: Mapping[str, str] | None = None) -> Message:
    return Message("m1", topic, body, None, headers or {}, "c1", 0.0)


async def call(function: Callable[..., Any], received: Message, topic: str = "orders") -> Any:
    return await compile_plan(function, topic=topic).call(received)


# -- the body ------------------------------------------------------------------------------------------------------


async def of_model(order: Order) -> Any:
    return order


async def of_struct(parcel: Parcel) -> Any:
    return parcel


async def of_dataclass(point: Point) -> Any:
    return point


async def of_typed_dict(track: Track) -> Any:
    return track


async def of_bytes(body: bytes) -> Any:
    return body


async def of_nothing_said(body) -> Any:
    return body


def of_sync(order: Order) -> Any:
    return order


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (of_model, Order(id=1, sku="a")),
        (of_struct, Parcel(1)),
        (of_dataclass, Point(1)),
        (of_typed_dict, {"id": 1}),
        (of_bytes, b'{"id": 1, "sku": "a"}'),
        (of_nothing_said, {"id": 1, "sku": "a"}),
        (of_sync, Order(id=1, sku="a")),
    ],
)
async def test_one_parameter_is_the_whole_body(function: Callable[..., Any], expected: Any) -> None:
    assert await call(function, message(b'{"id": 1, "sku": "a"}')) == expected


async def test_several_parameters_are_fields_of_the_body() -> None:
    async def audit(trace_id: int, order: Order, *, note: str = "none", tags: list[str] = ["x"]) -> Any:  # noqa: B006
        return trace_id, order, note, tags

    assert await call(audit, message(b'{"trace_id": 3, "order": {"id": 1, "sku": "a"}, "tags": []}')) == (
        3,
        Order(id=1, sku="a"),
        "none",
        [],
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"order": {"id": 1, "sku": "a"}}', "trace_id: Field required"),
        (b'{"trace_id": 1, "order": {"id": "x", "sku": "a"}}', "order.id: Input should be a valid integer"),
        (b"[]", "Input should be an object"),
        (b"", "the message has no body"),
    ],
)
async def test_a_field_that_does_not_fit_is_named(body: bytes, words: str) -> None:
    async def audit(trace_id: int, order: Order) -> None: ...

    with pytest.raises(InvalidBody, match=words):
        await call(audit, message(body))


async def test_fields_without_pydantic_have_msgspecs_words() -> None:
    async def charge(order_id: int, amount: Decimal) -> Any:
        return order_id, amount

    assert await call(charge, message(b'{"order_id": 1, "amount": "2.50", "more": 1}')) == (1, Decimal("2.50"))
    with pytest.raises(InvalidBody, match=r"Expected `int`, got `str` - at `\$\.order_id`"):
        await call(charge, message(b'{"order_id": "1", "amount": 1}'))


async def test_fields_may_have_names_that_a_model_could_not_have() -> None:
    async def odd(_id: int, model_config: str, order: Order | None = None) -> Any:
        return _id, model_config, order

    assert await call(odd, message(b'{"_id": 1, "model_config": "x"}')) == (1, "x", None)


async def test_fields_come_from_messagepack_too() -> None:
    async def audit(trace_id: int, order: Order) -> Any:
        return trace_id, order

    body = msgspec.msgpack.encode({"trace_id": 1, "order": {"id": 1, "sku": "a"}})

    assert await call(audit, message(body, headers={CONTENT_TYPE: "application/msgpack"})) == (1, Order(id=1, sku="a"))


async def test_embed_says_whether_a_parameter_is_a_field() -> None:
    async def one(id: Annotated[int, Body(embed=True)]) -> Any:
        return id

    async def both(order: Annotated[Order, Body(embed=False)], sku: str) -> Any:
        return order, sku

    assert await call(one, message(b'{"id": 7}')) == 7
    assert await call(both, message(b'{"id": 1, "sku": "a"}')) == (Order(id=1, sku="a"), "a")


async def test_a_default_is_taken_where_there_is_no_body() -> None:
    async def whole(order: Order | None = None) -> Any:
        return order

    async def fields(a: int = 1, b: int = 2) -> Any:
        return a, b

    assert await call(whole, message(b"")) is None
    assert await call(whole, message(b"null")) is None
    assert await call(whole, message(b'{"id": 1, "sku": "a"}')) == Order(id=1, sku="a")
    assert await call(fields, message(b"")) == (1, 2)
    assert await call(fields, message(b'{"b": 3}')) == (1, 3)


async def test_constraints_beside_a_marker_hold() -> None:
    async def bounded(n: Annotated[int, Body(), Field(gt=3)]) -> Any:
        return n

    assert await call(bounded, message(b"4")) == 4
    with pytest.raises(InvalidBody, match="greater than 3"):
        await call(bounded, message(b"3"))


async def test_a_handler_without_a_body_does_not_read_it() -> None:
    async def tick() -> str:
        return "tick"

    async def seen(message: Message) -> str:
        return message.id

    assert await call(tick, message(b"\xff{")) == "tick"
    assert await call(seen, message(b"\xff{")) == "m1"


# -- headers, path, message, logger --------------------------------------------------------------------------------


async def test_everything_at_once() -> None:
    async def log(
        level: Annotated[str, Path()],
        tenant: Annotated[str, Header("x-tenant")],
        text: Annotated[str, Body()],
        message: Message,
        logger: Logger,
    ) -> Any:
        return level, tenant, text, message.topic, isinstance(logger, logging.LoggerAdapter)

    received = message(b'"hi"', topic="logs.info", headers={"x-tenant": "br"})

    assert await call(log, received, "logs.{level}") == ("info", "br", "hi", "logs.info", True)


@pytest.mark.parametrize("headers", [{"x-user-id": "7"}, {"X-User-Id": "7"}, {"X-User-Id": "8", "x-user-id": "7"}])
async def test_a_header_is_named_after_its_parameter_and_converted(headers: dict[str, str]) -> None:
    async def handle(x_user_id: Annotated[int, Header()]) -> Any:
        return x_user_id

    assert await call(handle, message(headers=headers)) == 7


async def test_a_missing_header_is_the_default_or_an_error() -> None:
    async def required(tenant: Annotated[str, Header()]) -> Any: ...

    async def optional(tenant: Annotated[str | None, Header] = None, level: Annotated[int, Header()] = 3) -> Any:
        return tenant, level

    assert await call(optional, message()) == (None, 3)
    with pytest.raises(InvalidBody, match="header `tenant` is missing"):
        await call(required, message())


async def test_a_header_that_cannot_be_converted_is_named() -> None:
    async def handle(size: int = Header()) -> Any: ...

    with pytest.raises(InvalidBody, match="header `size`: Expected `int`"):
        await call(handle, message(headers={"size": "big"}))


async def test_a_captured_word_is_converted() -> None:
    async def handle(user: Annotated[int, Path("id")], kind: str = Path()) -> Any:
        return user, kind

    assert await call(handle, message(topic="users.7.created"), "users.{id}.{kind}") == (7, "created")
    with pytest.raises(InvalidBody, match="`id` of the topic: Expected `int`"):
        await call(handle, message(topic="users.x.created"), "users.{id}.{kind}")
    with pytest.raises(InvalidBody, match=r"does not match `users\.\{id\}\.\{kind\}`"):
        await call(handle, message(topic="dlq_users"), "users.{id}.{kind}")


async def test_the_logger_knows_the_message(caplog: pytest.LogCaptureFixture) -> None:
    async def handle(logger: Logger) -> None:
        logger.warning("low", extra={"sku": "a"})

    await call(handle, message(topic="stock.low"), "stock.*")

    (record,) = caplog.records
    fields = ("topic", "message_id", "correlation_id", "sku")
    assert [getattr(record, name) for name in fields] == ["stock.low", "m1", "c1", "a"]
    assert record.name == "carteiro.handlers.handle"


async def test_emitted_values_come_with_the_result() -> None:
    async def pay(
        order: Order, stock: Annotated[Emit[str], Topic("stock.released")], audit: Emit[int] = Topic("audit")
    ):
        stock("a", key="k", headers={"h": "1"}, delay=2)
        audit(1)
        return "paid"

    plan = compile_plan(pay, topic="orders")

    assert plan.emits
    assert await plan.call(message(b'{"id": 1, "sku": "a"}')) == Called(
        "paid", [Emitted("stock.released", "a", "k", {"h": "1"}, 2.0), Emitted("audit", 1, None, {}, 0.0)]
    )


def test_an_emitter_can_be_made_by_hand() -> None:
    stock: Emit[str] = Emit("stock.released")

    stock("a")

    assert [one.value for one in stock.emitted] == ["a"]


# -- kinds of callables --------------------------------------------------------------------------------------------


class Shop:
    def __init__(self, name: str) -> None:
        self.name = name

    async def place(self, order: Order) -> Any:
        return self.name, order.id

    async def __call__(self, order: Order) -> Any:
        return self.name, order.id

    @staticmethod
    async def stand(order: Order) -> Any:
        return "static", order.id


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


async def with_name(name: str, order: Order) -> Any:
    return name, order.id


async def order_first(order: Order, name: str, /, *, factor: int = 1) -> Any: ...


@traced
async def decorated(order: Order) -> Any:
    return "decorated", order.id


@pytest.mark.parametrize(
    ("function", "name", "result"),
    [
        (Shop("br").place, "Shop.place", ("br", 1)),
        (Shop("br"), "Shop", ("br", 1)),
        (Shop.stand, "Shop.stand", ("static", 1)),
        (functools.partial(with_name, "br"), "with_name", ("br", 1)),
        (functools.partial(with_name, name="br"), "with_name", ("br", 1)),
        (decorated, "decorated", ("decorated", 1)),
        (lambda order: (type(order).__name__, 1), "<lambda>", ("dict", 1)),
    ],
)
async def test_any_callable_is_a_handler(function: Callable[..., Any], name: str, result: Any) -> None:
    plan = compile_plan(function, topic="orders")

    assert plan.name == name
    assert "test_handlers_plan.py:" in plan.place
    assert await plan.call(message(b'{"id": 1, "sku": "a"}')) == result


def test_a_plan_knows_its_types() -> None:
    async def handle(order: Order) -> Parcel: ...  # type: ignore[empty-body]

    async def nothing(message: Message) -> None: ...

    plan = compile_plan(handle, topic="orders")

    assert (plan.body_type, plan.returns, plan.emits) == (Order, Parcel, False)
    assert compile_plan(nothing, topic="orders").body_type is None


# -- annotations as strings ----------------------------------------------------------------------------------------


def test_names_of_the_function_around_are_found_with_its_locals() -> None:
    class Local(BaseModel):
        id: int

    async def handle(order: Local) -> None: ...

    def subscriber(function: Callable[..., Any]) -> Mapping[str, Any] | None:
        return caller_locals(function)

    assert compile_plan(handle, topic="t", localns=subscriber(handle)).body_type is Local


def test_names_that_the_function_itself_uses_need_no_help() -> None:
    class Local(BaseModel):
        id: int

    async def handle(order: Local) -> Any:
        return Local

    assert compile_plan(handle, topic="t").body_type is Local


async def test_a_type_that_only_the_checker_sees_will_do_for_a_dependency() -> None:
    async def handle(session: Annotated[OnlyForTheChecker[int], Depends(lambda: 7)]) -> Any:
        return session

    assert await call(handle, message()) == 7


def test_an_unknown_return_type_is_any() -> None:
    async def handle(order: Order) -> Nowhere: ...  # type: ignore[name-defined]  # noqa: F821

    assert compile_plan(handle, topic="t").returns is Any


# -- what is refused -----------------------------------------------------------------------------------------------


async def with_args(*orders: Order) -> None: ...
async def with_kwargs(**orders: Order) -> None: ...
async def positional(order: Order, /) -> None: ...
async def unresolved(order: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821
async def unknown_path(level: Annotated[str, Path()]) -> None: ...
async def two_ways(tenant: Annotated[str, Header()] = Path()) -> None: ...
async def two_markers(tenant: Annotated[str, Header(), Body()]) -> None: ...
async def message_by_header(message: Annotated[Message, Header()]) -> None: ...
async def no_topic(stock: Emit[int]) -> None: ...
async def bad_topic(stock: Annotated[Emit[int], Topic("a.*")]) -> None: ...
async def uncalled_topic(stock: Annotated[Emit[int], Topic]) -> None: ...
async def topic_for_int(stock: Annotated[int, Topic("a")]) -> None: ...
async def undecodable(logger: logging.Logger) -> None: ...
async def undecodable_field(order: Order, logger: logging.Logger) -> None: ...
async def header_type(logger: Annotated[logging.Logger, Header()]) -> None: ...
async def field_default(n: int = Field(gt=3)) -> None: ...
async def no_dependency(n=Depends()) -> None: ...


@pytest.mark.parametrize(
    ("function", "parameter", "words"),
    [
        (with_args, "orders", "any number of arguments"),
        (with_kwargs, "orders", "any number of arguments"),
        (positional, "order", "positional-only"),
        (unresolved, "order", "'Nowhere' is not defined"),
        (unknown_path, "level", "the topic `logs.{severity}` captures `{severity}`"),
        (two_ways, "tenant", "named in 2 ways"),
        (two_markers, "tenant", "named in 2 ways"),
        (message_by_header, "message", "named in two ways: by `Header` and by its type"),
        (no_topic, "stock", "needs its topic"),
        (bad_topic, "stock", "is a pattern"),
        (uncalled_topic, "stock", "`Topic` needs a name"),
        (topic_for_int, "stock", "is for an `Emit`"),
        (undecodable, "logger", "carteiro's Logger"),
        (undecodable_field, "logger", "carteiro's Logger"),
        (header_type, "logger", "text can be converted to"),
        (field_default, "n", "Annotated[..., Field(...)]"),
        (no_dependency, "n", "needs something to call"),
    ],
)
def test_a_signature_that_cannot_work_is_refused_with_its_place(
    function: Callable[..., Any], parameter: str, words: str
) -> None:
    with pytest.raises(InvalidHandler) as caught:
        compile_plan(function, topic="logs.{severity}")

    text = str(caught.value)
    assert f"handler `{function.__name__}` (" in text
    assert f"test_handlers_plan.py:{function.__code__.co_firstlineno})" in text
    assert f"parameter `{parameter}`" in text
    assert words in text
    assert "\n" not in text


async def yields_async():
    yield 1


def yields():
    yield 1


@pytest.mark.parametrize("function", [yields, yields_async])
def test_a_generator_is_no_handler(function: Callable[..., Any]) -> None:
    with pytest.raises(InvalidHandler, match="yields"):
        compile_plan(function, topic="t")
