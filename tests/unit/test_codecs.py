"""Bodies to values and back."""

import enum
import ipaddress
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict
from uuid import UUID

import msgspec
import pydantic
import pytest
from pydantic import BaseModel, Field, field_validator

from carteiro.errors import InvalidBody, Unencodable
from carteiro.handlers.codecs import MSGPACK, converter, decoder, encode, wants_pydantic
from carteiro.message import CONTENT_TYPE, Message


class Order(BaseModel):
    id: int
    sku: str
    amount: Decimal


class Parcel(msgspec.Struct):
    id: int
    weight: Decimal


@dataclass
class Point:
    x: int
    y: int = 0


class Track(TypedDict):
    id: int
    at: datetime


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Node:
    value: int
    next: "Node | None" = None


@dataclass
class Wrapped:
    order: Order


@pydantic.dataclasses.dataclass
class Checked:
    n: Annotated[int, Field(gt=0)]


def message(body: bytes, content_type: str | None = None) -> Message:
    headers = {} if content_type is None else {CONTENT_TYPE: content_type}
    return Message("1", "t", body, None, headers, "1", 0.0)


VALUES: list[tuple[Any, Any]] = [
    (Order(id=1, sku="é", amount=Decimal("1.50")), Order),
    ([Order(id=1, sku="a", amount=Decimal(1))], list[Order]),
    ({"a": Order(id=1, sku="a", amount=Decimal(1))}, dict[str, Order]),
    (Wrapped(Order(id=1, sku="a", amount=Decimal(1))), Wrapped),
    (Checked(3), Checked),
    (Parcel(1, Decimal("0.1")), Parcel),
    (Point(1, 2), Point),
    (Node(1, Node(2)), Node),
    ({"id": 1, "at": datetime(2026, 1, 2, tzinfo=UTC)}, Track),
    (Decimal("1.10"), Decimal),
    (datetime(2026, 1, 2, 3, tzinfo=UTC), datetime),
    (date(2026, 1, 2), date),
    (timedelta(seconds=90), timedelta),
    (UUID(int=7), UUID),
    ({1, 2}, set[int]),
    ((1, "a"), tuple[int, str]),
    (Colour.RED, Colour),
    (Path("a/b"), Path),
    (ipaddress.ip_address("10.0.0.1"), ipaddress.IPv4Address),
    (deque([1, 2]), deque[int]),
    ("text", str),
    ("", str),
    (None, str | None),
    (7, int | str),
    (1.5, float),
    (True, bool),
    (None, None),
    ("b", Literal["a", "b"]),
    ([None, 1], Sequence[int | None]),
    ({"a": [1, "x", None]}, Any),
]


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize(("value", "annotation"), VALUES, ids=lambda one: str(one)[:40])
def test_what_is_encoded_is_decoded_to_the_same(value: Any, annotation: Any, codec: Literal["json", "msgpack"]) -> None:
    body, content_type = encode(value, codec=codec)

    assert content_type == (None if codec == "json" else MSGPACK)
    assert decoder(annotation)(message(body, content_type)) == value


def test_a_model_is_encoded_as_it_says_itself() -> None:
    class Renamed(BaseModel):
        n: int = Field(serialization_alias="number")
        secret: str = Field(exclude=True)

    value = Renamed(n=1, secret="x")

    assert encode(value) == (value.model_dump_json().encode(), None)
    assert encode([value]) == (b"[" + value.model_dump_json().encode() + b"]", None)


def test_json_is_plain() -> None:
    assert encode({"a": Decimal("1.5"), "b": {3}, "c": Path("x"), "d": None}) == (
        b'{"a":"1.5","b":[3],"c":"x","d":null}',
        None,
    )


def test_a_subclass_of_str_is_a_string() -> None:
    class Name(str):
        __slots__ = ()

    assert encode(Name("Ana")) == (b'"Ana"', None)


@pytest.mark.parametrize("value", [b"\x00\xff", bytearray(b"\x00\xff"), memoryview(b"\x00\xff")])
@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_bytes_are_a_body_already(value: Any, codec: Literal["json", "msgpack"]) -> None:
    body, content_type = encode(value, codec=codec)

    assert (body, content_type) == (b"\x00\xff", "application/octet-stream")
    assert decoder(bytes)(message(body, content_type)) == b"\x00\xff"
    assert decoder(Any)(message(body, content_type)) == b"\x00\xff"


class Handle:
    pass


class Loose(BaseModel):
    inner: Any


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"items": [1, {"handle": Handle()}]}, "$.items[1].handle"),
        (Parcel(1, Handle()), "$.weight"),  # type: ignore[arg-type]
        (Point(Handle()), "$.x"),  # type: ignore[arg-type]
        (Loose(inner=[Handle()]), "$.inner[0]"),
    ],
)
def test_what_cannot_be_encoded_is_named_with_its_place(
    value: Any, place: str, codec: Literal["json", "msgpack"]
) -> None:
    with pytest.raises(Unencodable) as caught:
        encode(value, codec=codec)

    assert "test_codecs.Handle`" in str(caught.value)
    assert f"`{place}`" in str(caught.value)


def test_a_value_that_holds_itself_is_told_so() -> None:
    value: list[Any] = []
    value.append(value)

    with pytest.raises(Unencodable, match="refers to itself"):
        encode(value)


@pytest.mark.parametrize(
    ("annotation", "body", "words"),
    [
        (Order, b'{"id": "x", "amount": 1}', "id: Input should be a valid integer"),
        (Order, b'{"id": "x", "amount": 1}', "; sku: Field required"),
        (Order, b"{", "Invalid JSON: EOF"),
        (list[Order], b'[{"id": 1, "sku": "a"}]', "0.amount: Field required"),
        (Parcel, b'{"id": "x", "weight": 1}', "Expected `int`, got `str` - at `$.id`"),
        (Parcel, b'{"id": 1}', "missing required field `weight`"),
        (int, b'"1"', "Expected `int`, got `str`"),
        (list[int], b"[1", "truncated"),
        (list[Any], b'["\xff"]', "utf-8"),
        (Annotated[int, Field(gt=3)], b"1", "greater than 3"),
        (Annotated[int, msgspec.Meta(gt=3)], b"1", ">= 4"),
        (str, b"123", "Expected `str`, got `int`"),
        (str, b'{"a": 1}', "Expected `str`, got `object`"),
        (str, b"\xff", "neither JSON nor text"),
        (list[Any], b"[" * 5000, "nested too deeply"),
        (Order, b"", "the message has no body"),
        (int, b"", "the message has no body"),
    ],
)
def test_a_body_that_does_not_fit_is_refused_in_the_validators_own_words(
    annotation: Any, body: bytes, words: str
) -> None:
    decode = decoder(annotation)

    with pytest.raises(InvalidBody) as caught:
        decode(message(body))

    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_many_errors_are_not_all_told() -> None:
    with pytest.raises(InvalidBody, match=r"; and 4 more$"):
        decoder(list[Order])(message(b"[{},{},{}]"))


def test_the_words_do_not_repeat_what_was_sent() -> None:
    with pytest.raises(InvalidBody) as caught:
        decoder(Order)(message(b'{"id": "hunter2", "sku": "a", "amount": 1}'))

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("annotation", [str, str | None])
@pytest.mark.parametrize(
    ("body", "content_type", "value"),
    [
        (b'"Ana"', None, "Ana"),
        (b"Ana", None, "Ana"),
        (b"123 Main St", None, "123 Main St"),
        (b"", None, ""),
        ("Zoë".encode(), None, "Zoë"),
        (b'"Ana"', "text/plain; charset=utf-8", '"Ana"'),
        (b"123", "text/plain", "123"),
        (b"<a/>", "application/xml", "<a/>"),
        (b'"Ana"', "application/json", "Ana"),
    ],
)
def test_text_is_a_json_string_or_raw(annotation: Any, body: bytes, content_type: str | None, value: str) -> None:
    assert decoder(annotation)(message(body, content_type)) == value


@pytest.mark.parametrize(
    ("body", "content_type", "value"),
    [
        (b'{"a": 1}', None, {"a": 1}),
        (b'{"a": 1}', "application/json", {"a": 1}),
        (b"plain", None, "plain"),
        (b"\xff\x00", None, b"\xff\x00"),
        (b"1", "text/plain", "1"),
        (b"1", "application/octet-stream", b"1"),
        (b"\xff\xd8", "image/jpeg", b"\xff\xd8"),
        (msgspec.msgpack.encode([1]), "application/msgpack", [1]),
        (msgspec.msgpack.encode([1]), "application/x-msgpack", [1]),
    ],
)
def test_a_body_of_any_type_is_what_it_looks_like(body: bytes, content_type: str | None, value: Any) -> None:
    assert decoder(Any)(message(body, content_type)) == value


@pytest.mark.parametrize("annotation", [Any, str, Order, int])
@pytest.mark.parametrize("content_type", ["application/json", "application/msgpack"])
def test_a_body_that_is_not_what_it_says_is_refused(annotation: Any, content_type: str) -> None:
    with pytest.raises(InvalidBody):
        decoder(annotation)(message(b"\xc1{", content_type))


class Validated(BaseModel):
    n: int

    @field_validator("n")
    @classmethod
    def even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("must be even")
        return value


def test_a_models_own_validators_run() -> None:
    with pytest.raises(InvalidBody, match="n: Value error, must be even"):
        decoder(Validated)(message(b'{"n": 1}'))


class Deep(msgspec.Struct):
    inner: list[tuple[int, "Wrapped | None"]]


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (Order, True),
        (list[Order] | None, True),
        (Wrapped, True),
        (Deep, True),
        (Checked, True),
        (Annotated[int, Field(gt=1)], True),
        (dict[str, Annotated[str, pydantic.StringConstraints(min_length=1)]], True),
        (pydantic.SecretStr, True),
        (Path, True),
        (Parcel, False),
        (Node, False),
        (Track, False),
        (dict[str, list[Decimal]], False),
        (Annotated[int, msgspec.Meta(gt=1)], False),
    ],
)
def test_pydantic_decodes_what_holds_something_of_its_own(annotation: Any, expected: bool) -> None:
    assert wants_pydantic(annotation) is expected


def test_what_nobody_can_decode_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="Handle"):
        decoder(Handle)


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [(int, "7", 7), (bool, "true", True), (UUID, str(UUID(int=1)), UUID(int=1)), (Colour, "red", Colour.RED)],
)
def test_text_is_converted_to_the_type(annotation: Any, text: str, value: Any) -> None:
    convert = converter(annotation)

    assert convert is not None
    assert convert(text) == value


def test_text_that_stays_text_costs_no_conversion() -> None:
    assert converter(str) is None
    assert converter(str | None) is None


def test_pydantic_is_imported_only_for_who_uses_it() -> None:
    code = (
        "import sys, decimal, msgspec\n"
        "from carteiro.handlers.codecs import decoder, encode\n"
        "from carteiro.handlers.plan import compile_plan\n"
        "class Parcel(msgspec.Struct): weight: decimal.Decimal\n"
        "def handle(a: Parcel, b: int = 0) -> None: ...\n"
        "compile_plan(handle, topic='t')\n"
        "encode(Parcel(decimal.Decimal(1)))\n"
        "print('pydantic' in sys.modules, 'pydantic_core' in sys.modules)"
    )

    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert out.split() == ["False", "False"]
