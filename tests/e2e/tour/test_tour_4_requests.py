"""Part 4: requests, and messages that are to come later, or not too late."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from carteiro import (
    ConfigurationError,
    NotConnected,
    RequestFailed,
    RequestTimeout,
    Retry,
    Unroutable,
    constant,
)
from tests.e2e.tour.stage import Stage, follow, soon

# -- requests --------------------------------------------------------------------------------------------------------


async def test_two_hundred_requests_share_one_inbox_and_each_gets_its_own_reply(stage: Stage):
    server, client = stage.app(), stage.app("client")

    @server.subscriber("double", concurrency=20)
    async def double(number: int) -> int:
        return 2 * number

    await stage.run(server)

    async with client:
        asked = [client.request("double", number, returns=int) for number in range(200)]
        assert await soon(asyncio.gather(*asked)) == [2 * number for number in range(200)]
        inboxes = [one for one in await (await stage.inspector()).groups() if one.topic.startswith("$reply")]
        assert len(inboxes) == (0 if stage.url.startswith("amqp:") else 1), "RabbitMQ lists no queue in memory only"


async def test_a_request_whose_handler_gives_up_fails_with_its_error(stage: Stage):
    app = stage.app()

    @app.subscriber("divide", retry=Retry(attempts=2, backoff=constant(0)))
    async def divide(number: int) -> float:
        return 1 / number

    handled = follow(app)
    await stage.run(app)

    with pytest.raises(RequestFailed, match="ZeroDivisionError: division by zero"):
        await soon(app.request("divide", 0))
    assert [one.message.attempt for one in await handled.many(2)] == [1, 2]


async def test_a_request_that_nobody_can_answer_fails_at_once(stage: Stage):
    async with stage.app() as app:
        with pytest.raises(Unroutable, match="no group handles `nobody`"):
            await soon(app.request("nobody", 1, timeout=3600))


async def test_a_request_that_is_not_answered_in_time_says_so_and_is_not_handled_any_more(stage: Stage):
    clock = stage.hold_time()
    app = stage.app()

    @app.subscriber("slow")
    async def slow(number: int) -> int:
        return number

    handled = follow(app)
    async with app:
        asked = asyncio.create_task(app.request("slow", 1, timeout=10))
        with pytest.raises(RequestTimeout, match="no reply from `slow` within 10 s"):
            await soon(stage.pass_until(asked))
    clock.advance_to(clock.time() + 1)
    await stage.run(app)
    await stage.settled("slow")

    assert handled.silent


async def test_a_request_under_way_fails_when_its_app_is_closed(stage: Stage):
    app = stage.app()

    @app.subscriber("slow")
    async def slow(number: int) -> None: ...

    async with app:
        asked = asyncio.create_task(app.request("slow", 1, timeout=3600))
        await stage.until("slow", lambda status: status.waiting > 0)

    with pytest.raises(NotConnected, match="the app was closed before `slow` had replied"):
        await soon(asked)


async def test_a_reply_is_decoded_as_what_was_asked_for(stage: Stage):
    app = stage.app()

    @app.subscriber("when")
    async def when() -> datetime:
        return datetime(2026, 11, 1, tzinfo=UTC)

    await stage.run(app)

    assert await soon(app.request("when", None, returns=datetime)) == datetime(2026, 11, 1, tzinfo=UTC)


# -- when ------------------------------------------------------------------------------------------------------------


async def test_a_delayed_message_comes_when_its_time_has_come(stage: Stage):
    clock = stage.hold_time()
    app = stage.app()

    @app.subscriber("reminders")
    async def remind(text: str) -> float:
        return clock.time()

    handled = follow(app)
    await stage.run(app)
    start = clock.time()

    await app.publish("reminders", "in five minutes", delay=timedelta(minutes=5))
    await app.publish("reminders", "in an hour", at=datetime.fromtimestamp(start + 3600, UTC))
    await app.publish("reminders", "in the past", at=datetime.fromtimestamp(start - 3600, UTC))
    await app.publish("reminders", "in ten minutes", delay="10m")

    ended = [await soon(stage.pass_until(handled.next(), step=60)) for _ in range(4)]

    texts = ["in the past", "in five minutes", "in ten minutes", "in an hour"]
    assert [one.message.body.decode().strip('"') for one in ended] == texts
    for one, due in zip(ended, (0, 300, 600, 3600), strict=True):
        assert one.result >= start + due


async def test_a_time_without_a_zone_is_refused(stage: Stage):
    async with stage.app() as app:
        with pytest.raises(ConfigurationError, match="give an aware datetime"):
            await app.publish("reminders", "?", at=datetime(2026, 11, 1))  # noqa: DTZ001


async def test_a_message_that_has_expired_is_dropped_and_not_dead(stage: Stage):
    clock = stage.hold_time()
    app = stage.app()

    @app.subscriber("prices")
    async def price(value: int) -> int:
        return value

    handled = follow(app)
    async with app:
        await app.publish("prices", 1, expires=60)
        await app.publish("prices", 2, expires=600)
    clock.advance_to(clock.time() + 61)
    await stage.run(app)

    assert (await handled.next()).result == 2
    await stage.settled("prices")
    assert handled.silent
    assert await stage.dead() == []
