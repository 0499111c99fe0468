"""Topics that keep what was handled: where a new group starts, and how one goes back."""

from datetime import UTC, datetime
from typing import Any

import pytest

from carteiro import Carteiro, Message
from carteiro.errors import BrokerError
from carteiro.ports.features import Capability
from tests.e2e.tour.stage import Stage, follow, soon


@pytest.fixture(autouse=True)
async def _retention(stage: Stage) -> None:
    await stage.needs(Capability.RETENTION)


def listening(stage: Stage, group: str, **options: Any) -> Carteiro:
    app = stage.app(group)

    @app.subscriber("orders", concurrency=1, **options)
    async def take(message: Message) -> bytes:
        return message.body

    return app


async def published_before(stage: Stage, retain: str | None = "7d") -> Carteiro:
    """An app that has handled 0, 1 and 2, published an hour from each other."""
    clock = stage.hold_time()
    app = listening(stage, "first", retain=retain)
    handled = follow(app)
    await stage.run(app)
    for number in range(3):
        await app.publish("orders", number)
        await handled.next()
        await stage.settled("orders", "first")
        clock.advance_to(clock.time() + 3600)
    return app


@pytest.mark.parametrize(
    ("start", "bodies"),
    [
        pytest.param("earliest", [b"0", b"1", b"2", b"3"], id="the earliest"),
        pytest.param("latest", [b"3"], id="the latest"),
        pytest.param(datetime(2026, 1, 1, 0, 30, tzinfo=UTC), [b"1", b"2", b"3"], id="a time"),
    ],
)
async def test_a_new_group_starts_where_it_says_on_a_topic_that_retains(stage: Stage, start: Any, bodies: list[bytes]):
    first = await published_before(stage)
    late = listening(stage, "late", start=start)
    handled = follow(late)
    await stage.run(late)

    await first.publish("orders", 3)

    assert [one.result for one in await handled.many(len(bodies))] == bodies
    await stage.settled("orders", "late")
    assert handled.silent


async def test_a_group_that_was_there_before_starts_nowhere_anew(stage: Stage):
    await published_before(stage)
    late = listening(stage, "late", start="earliest")
    handled = follow(late)
    await stage.run(late)
    await handled.many(3)
    await stage.stop(late)

    await stage.run(late)
    await late.publish("orders", 3)

    assert (await handled.next()).result == b"3"


async def test_what_is_older_than_the_retention_is_gone(stage: Stage):
    first = await published_before(stage, retain="90m")
    late = listening(stage, "late", start="earliest")
    handled = follow(late)
    await stage.run(late)

    await first.publish("orders", 3)

    assert [one.result for one in await handled.many(2)] == [b"2", b"3"]


async def test_a_group_can_be_rewound_to_a_time_and_no_other_group_notices(stage: Stage):
    first = await published_before(stage)
    late = listening(stage, "late")
    heard, handled = follow(first), follow(late)
    await stage.run(late)

    inspector = await stage.inspector()
    assert await inspector.rewind("orders", "late", datetime(2026, 1, 1, 0, 30, tzinfo=UTC).timestamp()) == 2

    assert [one.result for one in await handled.many(2)] == [b"1", b"2"]
    assert heard.silent


async def test_without_retention_what_every_group_has_handled_is_gone_and_cannot_be_rewound(stage: Stage):
    await published_before(stage, retain=None)
    late = listening(stage, "late", start="earliest")
    handled = follow(late)
    await stage.run(late)

    with pytest.raises(BrokerError, match="keeps nothing"):
        await (await stage.inspector()).rewind("orders", "late", 0.0)

    await late.publish("orders", 3)
    assert (await soon(handled.next())).result == b"3"


async def test_a_message_to_a_retained_topic_without_groups_is_kept_for_later_ones(stage: Stage):
    publisher = stage.app("publisher")
    publisher.topic("orders", retain="7d")
    async with publisher:
        await publisher.publish("orders", 1, mandatory=True)
    late = listening(stage, "late", start="earliest")
    handled = follow(late)
    await stage.run(late)

    assert (await handled.next()).result == b"1"
