"""Native objects as they are declared, refused, and stood in for in tests: no server is needed."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any

import msgspec
import pytest

from carteiro import Carteiro, ConfigurationError, Emit, Header, Message, Router, Topic, UnsupportedFeature
from carteiro.backends.rabbitmq import RabbitBinding, RabbitExchange, RabbitQueue
from carteiro.backends.rabbitmq.natives import native_queue
from carteiro.message import Native
from carteiro.testing import TestApp
from carteiro.topics import check_topic
from tests.redis_natives.stage import listen

LOGS = RabbitExchange("logs", type="direct")
JOBS = RabbitQueue("jobs")


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("native", "topic"),
    [
        (JOBS, "queue:jobs"),
        (RabbitQueue("my.jobs #1"), "queue:my.jobs%20%231"),
        (RabbitQueue("events", type="stream"), "stream:events"),
        (LOGS, "exchange:logs"),
        (LOGS.to("error"), "exchange:logs/error"),
        (RabbitExchange("t", type="topic", routing_key="user.*.br"), "exchange:t/user.%2A.br"),
    ],
)
def test_each_object_has_a_topic(native: Native, topic: str):
    assert check_topic(native.topic) == topic


def test_a_queue_is_found_by_its_topic():
    assert native_queue(RabbitQueue("my..jobs #1 ✓").topic) == "my..jobs #1 ✓"
    assert native_queue("orders.placed") is None


def test_an_object_is_shown_as_one_writes_it():
    assert repr(RabbitQueue("errors", LOGS, "error", ttl="5m")) == (
        "RabbitQueue('errors', bind=RabbitExchange('logs'), routing_key='error', ttl=300.0)"
    )
    assert repr(RabbitBinding(LOGS, "x")) == "RabbitBinding(RabbitExchange('logs'), routing_key='x')"
    assert repr(RabbitQueue("legacy", declare=False)) == "RabbitQueue('legacy', declare=False)"


def test_an_object_is_the_same_after_an_outbox_has_kept_it():
    archive = RabbitExchange("archive", type="fanout", bind=[RabbitBinding(LOGS, "x", {"a": 1})])
    for one in (archive, RabbitQueue("q", bind=archive, ttl=timedelta(hours=1)), LOGS.to("error")):
        again = msgspec.json.decode(msgspec.json.encode(one), type=type(one))
        assert (again, hash(again)) == (one, hash(one))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: RabbitQueue(""), "subscribe to the RabbitExchange with group=None"),
        (lambda: RabbitExchange(""), "publish to RabbitQueue"),
        (lambda: RabbitQueue("q" * 256), "at most 255 bytes"),
        (lambda: RabbitQueue("q", max_priority=5), 'quorum queue has no max_priority: say type="classic"'),
        (lambda: RabbitQueue("q", exclusive=True), 'is durable, for all, and stays: say type="classic"'),
        (lambda: RabbitQueue("q", type="stream", max_length=5), "limited by max_bytes or ttl"),
        (lambda: RabbitQueue("q", start="first"), "only a stream has a past"),
        (lambda: RabbitQueue("q", type="stream", start="begin"), '"first", "last", "next", an offset'),  # type: ignore[arg-type]
        (lambda: RabbitQueue("q", type="stream", start=datetime(2026, 1, 1)), "has no time zone"),  # noqa: DTZ001
        (lambda: RabbitQueue("q", type="lazy"), '"quorum", "classic" or "stream"'),  # type: ignore[arg-type]
        (lambda: RabbitQueue("q", ttl="soon"), "`soon` is no length of time"),
        (lambda: RabbitQueue("q", bind=["logs"]), "it is a RabbitExchange, a RabbitBinding"),  # type: ignore[list-item]
    ],
)
def test_an_object_that_cannot_be_is_refused(make: Any, error: str):
    with pytest.raises(ConfigurationError, match=error):
        make()


# -- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "options", "error"),
    [
        (JOBS, {"group": None}, r"cannot have group=None.*RabbitExchange with group=None"),
        (JOBS, {"start": "earliest"}, r'type="stream", start="first"'),
        (JOBS, {"ordered": True}, "gives each message to whoever is free"),
        (LOGS, {"start": "earliest"}, "only a stream has a past"),
    ],
)
def test_what_an_object_cannot_is_an_error_that_names_handler_and_object(
    source: Native, options: dict[str, Any], error: str
):
    app = Carteiro("shop", "memory://")
    listen(app, source, **options)
    with pytest.raises(ConfigurationError, match=rf"subscriber `.*handle` \(stage.py:\d+\).*{error}"):
        app.declared()


async def test_an_exchange_cannot_hold_back_a_message_and_the_error_says_what_can():
    async with TestApp(Carteiro("shop")) as t:
        with pytest.raises(UnsupportedFeature, match=r"cannot hold a message back: .* delay= to a RabbitQueue"):
            await t.publish(LOGS, 7, delay=5)


async def test_another_systems_broker_is_an_error_at_start_up():
    app = Carteiro("shop", "memory://")
    listen(app, JOBS)
    with pytest.raises(UnsupportedFeature, match=r"RabbitQueue\('jobs'\), which only rabbitmq has"):
        async with app:
            pass


def test_a_router_puts_no_prefix_before_an_object():
    app, router = Carteiro("shop", "memory://"), Router(prefix="orders.")

    @router.subscriber(JOBS)
    @router.publisher(LOGS.to("done"))
    async def handle(body: int) -> int:
        return body

    app.include(router)
    ((subscription, (subscriber,)),) = app.declared().items()
    assert (subscription.topic, subscription.group, subscription.source) == ("queue:jobs", "shop", JOBS)
    assert [to.topic for to in subscriber.publishes] == ["exchange:logs/done"]


# -- in tests --------------------------------------------------------------------------------------------------------


TOPICS = RabbitExchange("topics", type="topic")
DOCS = RabbitExchange("docs", type="headers")
NEWS = RabbitExchange("news", type="fanout")
ARCHIVE = RabbitExchange("archive", type="fanout", bind=[RabbitBinding(TOPICS, "#.error"), NEWS])


@pytest.mark.parametrize(
    ("source", "target", "headers", "comes"),
    [
        (RabbitQueue("q", LOGS, "error"), LOGS.to("error"), {}, True),
        (RabbitQueue("q", LOGS, "error"), LOGS.to("info"), {}, False),
        (RabbitQueue("q", LOGS, "error"), RabbitExchange("other").to("error"), {}, False),
        (RabbitQueue("q", [LOGS.to("a"), LOGS.to("b")]), LOGS.to("b"), {}, True),
        (RabbitQueue("q", TOPICS, "user.*.br"), TOPICS.to("user.7.br"), {}, True),
        (RabbitQueue("q", TOPICS, "user.*.br"), TOPICS.to("user.br"), {}, False),
        (RabbitQueue("q", TOPICS, "user.#"), TOPICS.to("user"), {}, True),
        (RabbitQueue("q", TOPICS, "#"), TOPICS, {}, True),
        (RabbitQueue("q", NEWS), NEWS.to("whatever"), {}, True),
        (RabbitQueue("q", RabbitBinding(DOCS, "", {"x-match": "all", "a": "1", "b": "2"})), DOCS, {"a": "1"}, False),
        (RabbitQueue("q", RabbitBinding(DOCS, "", {"x-match": "any", "a": "1", "b": "2"})), DOCS, {"a": "1"}, True),
        (RabbitQueue("q", RabbitBinding(DOCS, "", {"a": "1"})), DOCS, {"a": "2"}, False),
        (RabbitQueue("q", ARCHIVE), TOPICS.to("shop.error"), {}, True),
        (RabbitQueue("q", ARCHIVE), TOPICS.to("shop.info"), {}, False),
        (RabbitQueue("q", ARCHIVE), NEWS, {}, True),
        (RabbitQueue("q", NEWS, type="stream"), NEWS, {}, True),
        (TOPICS.to("user.*"), TOPICS.to("user.7"), {}, True),
        (LOGS.to("error"), LOGS.to("error"), {}, True),
        (JOBS, JOBS, {}, True),
    ],
)
async def test_without_a_server_a_message_goes_where_bindings_lead(
    source: Native, target: Native, headers: dict[str, str], comes: bool
):
    app = Carteiro("shop")
    came = listen(app, source)
    async with TestApp(app) as t:
        await t.publish(target, 7, headers=headers)
        await t.idle()
        assert t.published(target) == [7]
    assert came.nothing_more is not comes
    if comes:
        assert await came.bodies(1) == [7]
    assert came.nothing_more, "it came once"


async def test_an_app_with_native_objects_is_tested_without_a_server():
    app = Carteiro("shop")
    seen: list[str] = []

    @app.subscriber(RabbitQueue("users", TOPICS, "user.#"))
    @app.publisher(JOBS)
    async def user(
        id: int, key: Annotated[str, Header("routing-key")], log: Annotated[Emit[str], Topic(LOGS.to("info"))]
    ) -> int:
        log(key)
        return id

    @app.subscriber(RabbitQueue("logged", LOGS, "info"))
    async def logged(text: str, message: Message) -> None:
        seen.append(f"{message.headers['exchange']}: {text}")

    @app.subscriber(JOBS)
    async def job(id: str) -> None:
        raise AssertionError("it does not fit")

    async with TestApp(app) as t:
        await t.publish(TOPICS.to("user.7"), 7)
        await t.idle()
        assert t.published(LOGS.to("info")) == ["user.7"]
        assert [letter.message.body for letter in t.dead(JOBS)] == [b"7"]
    assert seen == ["logs: user.7"]
