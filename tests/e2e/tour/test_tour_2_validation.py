"""Part 2: where a handler's parameters come from, and what becomes of a body that does not fit."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from types import ModuleType
from typing import Annotated, Any, TypedDict

import msgspec
import pytest
from pydantic import BaseModel

from carteiro import Header, Message, Path
from tests.e2e.tour.stage import Stage, follow, soon


class Model(BaseModel):
    id: int
    amount: Decimal


class Struct(msgspec.Struct):
    id: int
    amount: Decimal


@dataclass
class Data:
    id: int
    amount: Decimal


class Typed(TypedDict):
    id: int
    amount: Decimal


ORDER = {"id": 7, "sku": "A-7", "amount": "9.90"}


async def test_the_tours_handlers_take_what_fits_them(
    stage: Stage, part: Callable[[str], ModuleType], caplog: pytest.LogCaptureFixture
):
    validation = part("validation")
    handled = follow(validation.app)
    await stage.run(validation.app)

    await validation.app.publish("orders.placed", ORDER)
    await validation.app.publish("audit", {"trace_id": 1, "order": ORDER})
    await validation.app.publish("logs.error", "no disk", headers={"x-tenant": "br"})

    assert [(one.result, one.error) for one in await handled.many(3)] == [(None, None)] * 3
    record = next(record for record in caplog.records if "no disk" in record.getMessage())
    assert record.getMessage().startswith("error of br, at 20")
    assert record.__dict__["topic"] == "logs.error"


async def test_a_body_that_does_not_fit_is_dead_at_once_with_the_validators_own_words(
    stage: Stage, part: Callable[[str], ModuleType]
):
    validation = part("validation")
    handled = follow(validation.app)
    await stage.run(validation.app)

    await validation.app.publish("orders.placed", {"id": "seven", "sku": "A-7", "amount": "9.90"})
    assert (await handled.next()).error is not None
    await stage.settled("orders.placed")

    (letter,) = await stage.dead("dlq_orders.placed")
    assert "Input should be a valid integer" in letter.reason
    assert "id" in letter.reason
    assert [failure.attempt for failure in letter.history] == [1]
    assert handled.silent


@pytest.mark.parametrize(
    ("topic", "body", "headers", "words"),
    [
        pytest.param("audit", {"trace_id": 1}, {}, "order", id="a field of the body"),
        pytest.param("logs.error", "no disk", {}, "header `x-tenant` is missing", id="a header"),
    ],
)
async def test_what_is_missing_is_named_in_the_dead_letter(
    stage: Stage, part: Callable[[str], ModuleType], topic: str, body: Any, headers: dict[str, str], words: str
):
    validation = part("validation")
    await stage.run(validation.app)

    await validation.app.publish(topic, body, headers=headers)
    await stage.settled("logs.*" if topic.startswith("logs") else topic)

    (letter,) = await stage.dead()
    assert words in letter.reason


@pytest.mark.parametrize("kind", [Model, Struct, Data, Typed])
async def test_a_body_is_whatever_kind_of_type_the_handler_names(stage: Stage, kind: type):
    app = stage.app()

    async def show(order: Any) -> str:
        return repr(order)

    show.__annotations__["order"] = kind
    app.subscriber("orders")(show)
    await stage.run(app)

    assert await soon(app.request("orders", {"id": 7, "amount": "9.90"})) == repr(kind(id=7, amount=Decimal("9.90")))


@pytest.mark.parametrize(
    ("kind", "value"), [(int, 7), (str, "seven"), (list[int], [7]), (dict[str, int], {"a": 7}), (bytes, b"\x00\xff")]
)
async def test_plain_types_are_bodies_too(stage: Stage, kind: Any, value: Any):
    app = stage.app()

    async def back(value: Any) -> bool:
        return bool(value == expected)

    expected = value
    back.__annotations__["value"] = kind
    app.subscriber("values")(back)
    await stage.run(app)

    assert await soon(app.request("values", value)) is True


async def test_a_star_takes_one_word_and_a_hash_any_number(stage: Stage):
    app = stage.app()

    @app.subscriber("logs.*", group="star")
    async def one(message: Message) -> str:
        return f"star {message.topic}"

    @app.subscriber("logs.#", group="hash")
    async def any_number(message: Message) -> str:
        return f"hash {message.topic}"

    handled = follow(app)
    await stage.run(app)

    await app.publish("logs", 0)
    await app.publish("logs.error", 1)
    await app.publish("logs.error.disk", 2)

    assert sorted(one.result for one in await handled.many(4)) == [
        "hash logs",
        "hash logs.error",
        "hash logs.error.disk",
        "star logs.error",
    ]


async def test_several_words_are_captured_and_converted(stage: Stage):
    app = stage.app()

    @app.subscriber("shops.{shop}.shelves.{shelf}")
    async def where(shop: Annotated[str, Path()], shelf: Annotated[int, Path()], text: str) -> list[Any]:
        return [shop, shelf, text]

    handled = follow(app)
    await stage.run(app)

    await app.publish("shops.porto.shelves.12", "full")

    assert (await handled.next()).result == ["porto", 12, "full"]


async def test_a_handler_sees_all_that_a_message_carries(stage: Stage):
    app = stage.app()
    seen: list[Message] = []

    @app.subscriber("orders")
    async def look(message: Message, tenant: Annotated[str, Header("X-Tenant")]) -> str:
        seen.append(message)
        return tenant

    handled = follow(app)
    await stage.run(app)

    id = await app.publish("orders", 7, key="k7", headers={"x-tenant": "São Tomé"}, correlation_id="c1")

    assert (await handled.next()).result == "São Tomé"
    (message,) = seen
    assert (message.id, message.topic, message.key, message.body) == (id, "orders", "k7", b"7")
    assert (message.correlation_id, message.attempt) == ("c1", 1)
    assert message.headers["x-tenant"] == "São Tomé"
    assert message.published_at.tzinfo is not None


async def test_without_a_correlation_id_a_message_starts_one(stage: Stage):
    app = stage.app()

    @app.subscriber("orders")
    async def look(message: Message) -> str:
        return message.correlation_id

    handled = follow(app)
    await stage.run(app)

    id = await app.publish("orders", 7)

    assert (await handled.next()).result == id


async def test_each_message_logs_under_its_own_name(stage: Stage, caplog: pytest.LogCaptureFixture):
    validation_log = logging.getLogger("carteiro.handlers")
    assert validation_log.name  # a parent that a user can set levels on
    app = stage.app()
    from carteiro import Logger

    @app.subscriber("orders")
    async def look(number: int, logger: Logger) -> None:
        logger.warning("order %d", number)

    handled = follow(app)
    await stage.run(app)

    ids = [await app.publish("orders", number, correlation_id=f"c{number}") for number in range(2)]
    await handled.many(2)

    records = {record.getMessage(): record for record in caplog.records if record.name.startswith(validation_log.name)}
    for number, id in enumerate(ids):
        record = records[f"order {number}"].__dict__
        assert (record["message_id"], record["correlation_id"], record["topic"]) == (id, f"c{number}", "orders")
