"""RedisChannel: what any client sends with PUBLISH, and what any client hears."""

from __future__ import annotations

import asyncio

import pytest

from carteiro import Message, Retry, Unroutable, constant
from carteiro.backends.redis import RedisChannel
from carteiro.backends.redis.importing import WAITING, Channel
from tests.redis_natives.stage import Place, listen, soon, working


async def test_every_process_gets_what_is_sent_in_its_order(place: Place):
    apps = [place.app(), place.app()]
    channel = RedisChannel(place.name("news"))
    all_came = [listen(app, channel, concurrency=1) for app in apps]

    async with working(*apps):
        for number in range(300):
            assert place.client.publish(channel.name, number) == 2
        for came in all_came:
            assert await came.bodies(300) == list(range(300))
        place.client.publish(channel.name, b"\xff\x00")
        body, message = await all_came[0].next()
        assert (body, message.topic, message.headers) == (b"\xff\x00", channel.topic, {"channel": channel.name})
    assert place.client.publish(channel.name, 1) == 0
    assert not [key for key in place.text.keys(f"{{{place.prefix}}}*") if "channel:" in key]


async def test_a_pattern_brings_what_is_sent_to_each_channel_that_it_matches(place: Place):
    app = place.app()
    channels = RedisChannel(place.name("news.*"), pattern=True)
    came = listen(app, channels)

    async with working(app):
        for name in (place.name("news.br"), place.name("news.pt.lisboa"), place.name("other")):
            place.client.publish(name, f'"{name}"')
        for name in (place.name("news.br"), place.name("news.pt.lisboa")):
            body, message = await came.next()
            assert (body, message.headers["channel"], message.topic) == (name, name, channels.topic)
    assert came.nothing_more


async def test_what_came_through_a_channel_is_tried_again_and_dies_in_the_end(here: Place):
    app, channel = here.app(), RedisChannel(here.name("news"))
    attempts: list[int] = []

    @app.subscriber(channel, retry=Retry(attempts=3, backoff=constant(0.01)))
    async def hear(body: str, message: Message) -> None:
        attempts.append(message.attempt)
        raise ValueError("never")

    async with working(app):
        here.client.publish(channel.name, '"oi"')
        async with asyncio.timeout(30):
            while not (letters := await here.dead()):
                pass
    assert attempts == [1, 2, 3]
    assert (letters[0].message.topic, letters[0].message.body) == (channel.topic, b'"oi"')


async def test_what_is_published_to_a_channel_a_plain_client_hears(place: Place):
    channel = RedisChannel(place.name("news"))
    async with place.app() as app:
        with place.text.pubsub() as heard:
            heard.subscribe(channel.name)
            assert heard.get_message(timeout=10) is not None
            await app.publish(channel, {"id": 7}, mandatory=True)
            message = await asyncio.to_thread(heard.get_message, timeout=10)
    assert message is not None
    assert message["data"] == '{"id":7}'


async def test_a_channel_that_nobody_listens_to_is_unroutable_where_that_matters(place: Place):
    channel = RedisChannel(place.name("news"))
    async with place.app() as app:
        await app.publish(channel, 7)
        with pytest.raises(Unroutable, match="news"):
            await app.publish(channel, 7, mandatory=True)


async def test_after_a_broken_connection_the_channel_is_listened_to_again(own_place: Place):
    app, channel = own_place.app(), RedisChannel("news")
    came = listen(app, channel)
    async with working(app):
        own_place.client.execute_command("CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes")
        await own_place.until(lambda: own_place.client.publish("news", "7"))
        assert await came.bodies(1) == [7]


async def test_no_more_is_put_into_the_queue_than_there_is_room_for(here: Place):
    app, channel = here.app(), RedisChannel(here.name("news"))
    begun, go_on = asyncio.Event(), asyncio.Event()
    handled: list[int] = []

    @app.subscriber(channel, concurrency=2, prefetch=3)
    async def hear(number: int) -> None:
        begun.set()
        await go_on.wait()
        handled.append(number)

    async with working(app):
        for number in range(100):
            here.client.publish(channel.name, number)
        await soon(begun.wait())
        async with here.inspector() as inspector:
            (status,) = [one for one in await inspector.groups() if one.topic == channel.topic]
        assert status.left <= 5
        go_on.set()
        await here.until(lambda: len(handled) == 100)
    assert sorted(handled) == list(range(100))


def test_a_process_that_cannot_follow_drops_what_is_newest_and_says_so(caplog: pytest.LogCaptureFixture):
    channel = Channel(RedisChannel("news"))
    for number in range(WAITING + 3):
        channel.heard([b"message", b"news", b"%d" % number])
    channel.taken(2)
    channel.heard([b"message", b"news", b"last"])

    assert [channel.waiting[0].body, channel.waiting[-1].body, len(channel.waiting)] == [b"2", b"last", WAITING - 1]
    assert "RedisChannel('news'): 3 messages were dropped" in caplog.text
