"""Routers: what their functions subscribe and publish to, wherever they are included and however they are decorated."""

import pytest

from carteiro import Batch, Carteiro, Router
from carteiro.testing import TestApp


async def double(number: int) -> int:
    return 2 * number


async def went_to(app: Carteiro, topic: str) -> list[str]:
    """Where what `double` returns goes when a message comes to `topic`."""
    async with TestApp(app) as t:
        await t.publish(topic, 21)
        await t.idle()
        assert {message.body for message in t.messages() if message.topic != topic} <= {b"42"}
        return sorted(message.topic for message in t.messages() if message.topic != topic)


def shop(*routers: tuple[str, Router]) -> Carteiro:
    app = Carteiro("shop", "memory://")
    for prefix, router in routers:
        app.include(router, prefix=prefix)
    return app


@pytest.mark.parametrize("publisher_first", [True, False])
async def test_a_router_under_two_prefixes_publishes_under_that_of_its_message(publisher_first: bool):
    router = Router()
    decorators = [router.subscriber("in"), router.publisher("out")]
    for decorate in reversed(decorators) if publisher_first else decorators:
        decorate(double)

    assert await went_to(shop(("a.", router), ("b.", router)), "a.in") == ["a.out"]
    assert await went_to(shop(("a.", router), ("b.", router)), "b.in") == ["b.out"]


async def test_several_subscribers_of_a_router_share_the_publishers_of_their_function():
    router = Router()
    for topic in ("first", "second"):
        router.subscriber(topic)(double)
        router.publisher(f"after.{topic}")(double)

    for topic in ("first", "second"):
        assert await went_to(shop(("a.", router)), f"a.{topic}") == ["a.after.first", "a.after.second"]


async def test_a_router_within_a_router_has_both_prefixes():
    inner, outer = Router(prefix="inner."), Router(prefix="outer.")
    inner.subscriber("in")(inner.publisher("out")(double))
    outer.include(inner)

    assert await went_to(shop(("a.", outer)), "a.outer.inner.in") == ["a.outer.inner.out"]


async def test_an_app_may_publish_what_a_subscriber_of_its_router_returns():
    router = Router()
    router.subscriber("in")(router.publisher("out")(double))
    app = shop(("a.", router))
    app.publisher("doubled")(double)

    assert await went_to(app, "a.in") == ["a.out", "doubled"]


async def test_a_router_may_publish_what_a_subscriber_of_its_app_returns():
    router = Router()
    router.publisher("out")(double)
    app = shop(("a.", router))
    app.subscriber("in")(double)

    assert await went_to(app, "in") == ["a.out"]


async def test_two_broadcasts_of_one_name_on_one_topic_are_two():
    app = shop()
    heard: list[int] = []

    def declare(number: int) -> None:
        @app.subscriber("prices.changed", group=None)
        async def forget(sku: str) -> None:
            heard.append(number)

    declare(1)
    declare(2)
    async with TestApp(app) as t:
        await t.publish("prices.changed", "A-7")
        await t.idle()

    assert sorted(heard) == [1, 2]


async def test_the_wait_of_a_batch_may_be_written_as_text():
    app = shop()
    batches: list[list[int]] = []

    @app.subscriber("clicks", batch=Batch(size=10, wait="500ms"))
    async def take(clicks: list[int]) -> None:
        batches.append(clicks)

    async with TestApp(app) as t:
        await t.publish_many("clicks", [1, 2])
        await t.advance(0.4)
        assert batches == []
        await t.advance(0.2)
        assert batches == [[1, 2]]
