"""Native objects as they are declared, refused, and stood in for in tests: no server is needed."""

from __future__ import annotations

from typing import Annotated, Any, assert_type

import msgspec
import pytest

from carteiro import (
    Carteiro,
    ConfigurationError,
    Depends,
    Emit,
    InvalidTopic,
    Message,
    Router,
    Topic,
    UnsupportedFeature,
)
from carteiro.backends.redis import RedisChannel, RedisList, RedisStream
from carteiro.message import Native
from carteiro.testing import TestApp
from carteiro.topics import check_topic

LIST, STREAM, CHANNEL = RedisList("jobs"), RedisStream("events"), RedisChannel("news")


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("native", "topic"),
    [
        (RedisList("jobs"), "list:jobs"),
        (RedisStream("shop.events"), "stream:shop.events"),
        (RedisChannel("news.*", pattern=True), "channel:news.%2A"),
        (RedisList("{carteiro}my jobs"), "list:%7Bcarteiro%7Dmy%20jobs"),
        (RedisList("a..b"), "list:a%2E%2Eb"),
        (RedisList("100%"), "list:100%25"),
        (RedisList("Zoë"), "list:Zoë"),
        (RedisList("a\u2003b"), "list:a%E2%80%83b"),
    ],
)
def test_each_object_has_a_topic(native: Native, topic: str):
    assert check_topic(native.topic) == topic


def test_an_object_is_shown_as_one_writes_it():
    assert repr(RedisStream("events", maxlen=10)) == "RedisStream('events', maxlen=10)"
    assert repr(RedisChannel("n*", pattern=True)) == "RedisChannel('n*', pattern=True)"


def test_an_object_that_cannot_be_is_refused():
    for native, options in (
        (RedisList, {"name": ""}),
        (RedisChannel, {"name": 7}),
        (RedisStream, {"name": "s", "maxlen": 0}),
        (RedisStream, {"name": "s", "body": "key"}),
    ):
        with pytest.raises(ConfigurationError):
            native(**options)


def test_what_is_neither_a_name_nor_an_object_is_no_topic():
    with pytest.raises(InvalidTopic, match="7 is no topic"):
        Router().publisher(7)  # type: ignore[arg-type]


# -- what cannot be --------------------------------------------------------------------------------------------------


def app_with(source: Native, **options: Any) -> Carteiro:
    app = Carteiro("shop", "memory://")

    @app.subscriber(source, **options)
    async def handle(body: Any) -> None: ...

    return app


@pytest.mark.parametrize(
    ("source", "options", "error"),
    [
        (CHANNEL, {"group": "stock"}, "cannot have group=.*RedisList or a RedisStream"),
        (STREAM, {"group": None}, "cannot have group=None"),
        (RedisStream("events", group="a"), {"group": "b"}, "read as the group `a`.*say it in one place"),
        (LIST, {"start": "earliest"}, "only a stream has a past"),
        (CHANNEL, {"start": "earliest"}, "only a stream has a past"),
    ],
)
def test_what_an_object_cannot_is_an_error_that_names_handler_and_object(
    source: Native, options: dict[str, Any], error: str
):
    with pytest.raises(ConfigurationError, match=rf"subscriber `.*handle` \(test_declaring.py:\d+\).*{error}"):
        app_with(source, **options).declared()


def test_what_a_list_keeps_is_not_for_carteiro_to_say():
    with pytest.raises(ConfigurationError, match=r"retain='7d' on RedisList\('jobs'\)"):
        app_with(LIST, retain="7d")


def test_two_handlers_of_one_group_read_a_stream_alike():
    app = app_with(STREAM, type="a")

    @app.subscriber(RedisStream("events", body="payload"), type="b")
    async def other(body: Any) -> None: ...

    with pytest.raises(ConfigurationError, match="source= must be the same"):
        app.declared()


async def test_a_subscriber_of_another_systems_object_is_an_error_at_start_up():
    with pytest.raises(UnsupportedFeature, match=r"`.*handle` \(test_declaring.py:\d+\).*RedisList\('jobs'\).*memory"):
        async with app_with(LIST):
            pass


async def test_a_publisher_to_another_systems_object_is_an_error_at_start_up():
    app = Carteiro("shop", "memory://")

    @app.subscriber("orders")
    @app.publisher(STREAM)
    async def handle(body: int) -> int:
        return body

    with pytest.raises(UnsupportedFeature, match=r"RedisStream\('events'\), which only redis has"):
        async with app:
            pass


async def test_an_emit_to_another_systems_object_is_an_error_at_start_up():
    app = Carteiro("shop", "memory://")

    async def told(emit: Annotated[Emit[int], Topic(LIST)]) -> None: ...

    @app.subscriber("orders")
    async def handle(body: int, told: Annotated[None, Depends(told)]) -> None: ...

    with pytest.raises(UnsupportedFeature, match=r"the Emit of `.*handle`.*RedisList\('jobs'\)"):
        await app.run()


async def test_a_publish_to_another_systems_object_is_an_error():
    async with Carteiro("shop", "memory://") as app:
        with pytest.raises(UnsupportedFeature, match=r"RedisList\('jobs'\), which only redis has"):
            await app.publish(LIST, 7)
        with pytest.raises(UnsupportedFeature, match=r"RedisList\('jobs'\), which only redis has"):
            await app.publish_many(LIST, [7])


@pytest.mark.parametrize(
    ("target", "options", "error"),
    [
        (LIST, {"delay": 5}, r"RedisList\('jobs'\) cannot hold a message back: publish with delay= to a topic"),
        (STREAM, {"delay": 5}, "cannot hold a message back"),
        (STREAM, {"id": "7"}, "cannot recognise an id: drop id="),
        (LIST, {"key": "k"}, "cannot carry `a key`"),
        (CHANNEL, {"headers": {"x-tenant": "br"}}, "cannot carry `x-tenant`.*take a RedisStream"),
        (LIST, {"type": "order"}, "cannot carry `type`"),
        (STREAM, {"headers": {"key": "k"}}, "has a field `key` of its own"),
        (RedisChannel("n*", pattern=True), {}, "is a pattern"),
    ],
)
async def test_what_an_object_cannot_carry_is_said_with_the_way_out(
    target: Native, options: dict[str, Any], error: str
):
    async with TestApp(Carteiro("shop")) as t:
        with pytest.raises(UnsupportedFeature, match=error):
            await t.publish(target, 7, **options)


# -- routers and groups ----------------------------------------------------------------------------------------------


def test_a_router_puts_no_prefix_before_an_object():
    app, router = Carteiro("shop", "memory://"), Router(prefix="orders.")

    @router.subscriber(LIST)
    @router.publisher(STREAM)
    @router.publisher("placed")
    async def handle(body: int) -> int:
        return body

    app.include(router, prefix="v1.")
    ((subscription, (subscriber,)),) = app.declared().items()
    assert (subscription.topic, subscription.group, subscription.source) == ("list:jobs", "shop", LIST)
    assert [to.topic for to in subscriber.publishes] == ["v1.orders.placed", "stream:events"]


def test_the_group_is_the_apps_the_streams_or_none():
    def group(source: Native, **options: Any) -> tuple[str, bool]:
        (subscription,) = app_with(source, **options).declared()
        return subscription.group, subscription.ephemeral

    assert group(LIST) == ("shop", False)
    assert group(LIST, group="stock") == ("stock", False)
    assert group(STREAM, group="stock") == ("stock", False)
    assert group(RedisStream("events", group="theirs")) == ("theirs", False)
    assert group(CHANNEL)[1]
    assert group(LIST, group=None)[1]


# -- in tests --------------------------------------------------------------------------------------------------------


class Reserved(msgspec.Struct):
    order: int


app = Carteiro("shop")


@app.subscriber(LIST)
@app.publisher(STREAM)
async def reserve(order: int, told: Annotated[Emit[str], Topic(RedisChannel("news.br"))]) -> Reserved:
    told("reserved")
    return Reserved(order)


@app.subscriber(RedisChannel("news.*", pattern=True))
async def hear(text: str, message: Message) -> str:
    assert_type(text, str)
    heard.append((message.headers["channel"], text))
    return text


heard: list[tuple[str, str]] = []


async def test_an_app_with_native_objects_is_tested_without_a_server():
    heard.clear()
    async with TestApp(app) as t:
        await t.publish(LIST, 7)
        await t.publish_many(LIST, ["no order"])
        await t.publish(RedisChannel("news.pt"), "olá")
        await t.publish(RedisChannel("other"), "?")
        await t.idle()
        assert t.published(STREAM) == [Reserved(7)]
        assert t.published(RedisChannel("news.br")) == ["reserved"]
        assert [letter.message.body for letter in t.dead(LIST)] == [b'"no order"']
    assert sorted(heard) == [("news.br", "reserved"), ("news.pt", "olá")]
    assert_type(await reserve(7, Emit("news")), Reserved)


def test_an_emit_made_by_hand_takes_an_object_too():
    emit = Emit[int](LIST)
    emit(7)
    assert (emit.topic, emit.emitted[0].target) == ("list:jobs", LIST)
