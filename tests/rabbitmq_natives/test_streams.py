"""RabbitQueue(type="stream"): a log that others write too, read by groups that remember where they are."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from carteiro import Carteiro, Message, Reject, Retry, constant
from carteiro.backends.rabbitmq import RabbitExchange, RabbitQueue
from tests.rabbitmq_natives.stage import Place
from tests.redis_natives.stage import Came, listen, working
from tests.servers.rabbitmq import RabbitServer


def stream_of(place: Place, **options: Any) -> RabbitQueue:
    return RabbitQueue(place.queue("events", kind="stream"), type="stream", **options)


async def test_a_group_that_begins_at_the_first_gets_all_and_goes_on_where_it_was(place: Place):
    stream = stream_of(place, start="first")
    for number in range(5):
        place.publish(stream.name, str(number).encode(), message_id=f"m-{number}", headers={"x-tenant": "br"})
    app = place.app()
    came = listen(app, stream)
    async with working(app):
        messages = [await came.next() for _ in range(5)]
    assert [body for body, _ in messages] == [0, 1, 2, 3, 4]
    _, message = messages[3]
    assert (message.id, message.topic, message.attempt) == ("m-3", stream.topic, 1)
    assert message.headers == {"x-tenant": "br", "stream-offset": "3"}

    place.publish(stream.name, b"5")
    later = place.app()
    came = listen(later, stream)
    async with working(later):
        body, message = await came.next()
    assert (body, message.id) == (5, f"{stream.name}:5")
    assert came.nothing_more


async def test_a_group_that_begins_next_gets_what_comes_after_it_was_declared(place: Place):
    stream = stream_of(place)
    for number in range(5):
        place.publish(stream.name, str(number).encode())
    app = place.app()
    came = listen(app, stream)
    async with app:
        place.publish(stream.name, b"5")  # the group is there, and no worker of it yet
    async with working(app):
        place.publish(stream.name, b"6")
        assert await came.bodies(2) == [5, 6]
    assert came.nothing_more


async def test_a_group_begins_at_an_offset_or_a_time(place: Place):
    before = datetime.now(UTC)
    stream = stream_of(place)
    for number in range(5):
        place.publish(stream.name, str(number).encode())
    app, other = place.app("shop"), place.app("audit")
    from_offset = listen(app, stream_of(place, start=3))
    from_time = listen(other, stream_of(place, start=before))
    async with working(app, other):
        assert await from_offset.bodies(2) == [3, 4]
        assert await from_time.bodies(5) == [0, 1, 2, 3, 4]
    assert from_offset.nothing_more


async def test_each_group_gets_every_message_and_one_worker_of_it(place: Place):
    stream = stream_of(place, start="first")
    shop = [place.app("shop"), place.app("shop")]
    audit = place.app("audit")
    in_shop = [listen(app, stream) for app in shop]
    in_audit = listen(audit, stream)
    async with working(*shop, audit):
        async with place.app("office") as office:
            await office.publish_many(stream, range(200))
        assert await in_audit.bodies(200) == list(range(200))
        seen: list[int] = []
        async with asyncio.timeout(30):
            while len(seen) < 200:
                waiting = [asyncio.ensure_future(came.next()) for came in in_shop]
                done, others = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for one in others:
                    one.cancel()
                seen += [one.result()[0] for one in done]
    assert sorted(seen) == list(range(200))


async def test_a_broadcast_of_a_stream_reaches_every_process_from_where_it_began(place: Place):
    stream = stream_of(place)
    place.publish(stream.name, b"1")
    apps = [place.app(), place.app()]
    all_came = [listen(app, stream, group=None) for app in apps]
    async with working(*apps):
        place.publish(stream.name, b"2")
        assert [await came.bodies(1) for came in all_came] == [[2], [2]]


async def test_a_stream_is_copied_no_further_than_its_group_has_room(place: Place):
    stream = stream_of(place, start="first")
    for start in range(0, 4500, 1500):
        async with place.app("office") as office:
            await office.publish_many(stream, range(start, start + 1500))
    app = place.app()
    may_go_on = asyncio.Event()
    done: list[int] = []

    @app.subscriber(stream, concurrency=1, prefetch=0)
    async def handle(number: int) -> None:
        await may_go_on.wait()
        done.append(number)

    queue = f"{place.prefix}.{stream.topic}@shop"
    async with working(app):
        await place.until(lambda: place.depth(queue) > 2000)
        depth = place.depth(queue)
        may_go_on.set()
        await place.until(lambda: len(set(done)) == 4500)
    assert depth < 3500


async def test_retries_and_dead_letters_of_a_stream_are_its_groups_alone(place: Place):
    stream = stream_of(place, start="first")
    app, other, came = place.app("shop"), place.app("audit"), Came()

    @app.subscriber(stream, retry=Retry(attempts=3, backoff=constant(0.1)))
    async def handle(number: int, message: Message) -> None:
        came.note(number, message)
        if number == 2:
            raise Reject("not two")
        if message.attempt < 3:
            raise ValueError("not yet")

    in_audit = listen(other, stream)
    async with working(app, other):
        place.publish(stream.name, b"1")
        place.publish(stream.name, b"2")
        attempts = sorted([(body, message.attempt) for body, message in [await came.next() for _ in range(4)]])
        (letter,) = await place.dead()
        assert sorted(await in_audit.bodies(2)) == [1, 2]
    assert attempts == [(1, 1), (1, 2), (1, 3), (2, 1)]
    assert (letter.topic, letter.group, letter.message.headers) == (stream.topic, "shop", {"stream-offset": "1"})
    assert letter.queue.startswith(f"dlq_{stream.topic}")
    assert in_audit.nothing_more


async def test_what_is_published_to_a_stream_a_plain_client_reads(place: Place):
    stream = RabbitQueue(place.name("events"), type="stream", ttl="1h", max_bytes=100_000_000)
    async with place.app() as app:
        await app.publish(stream, {"id": 7}, headers={"x-tenant": "br"})
    channel = place.other_channel()
    channel.basic_qos(prefetch_count=10)
    for method, properties, body in channel.consume(stream.name, arguments={"x-stream-offset": "first"}):
        assert (body, properties.headers["x-tenant"]) == (b'{"id":7}', "br")
        channel.basic_ack(method.delivery_tag)
        break


async def test_a_stream_can_be_bound_to_an_exchange(place: Place):
    app, logs = place.app(), RabbitExchange(place.name("logs"), type="topic")
    came = listen(app, RabbitQueue(place.name("kept"), bind=logs, routing_key="#", type="stream"))
    async with working(app):
        await app.publish(logs.to("shop.error"), "oh")
        assert await came.bodies(1) == ["oh"]


async def test_the_group_of_a_stream_is_removed_with_its_position(here: Place):
    stream = stream_of(here, start="first")
    here.publish(stream.name, b"1")
    for _ in range(2):
        app = here.app()
        came = listen(app, stream)
        async with working(app):
            assert await came.bodies(1) == [1]
        async with here.inspector() as inspector:
            await inspector.remove_group(stream.topic, "shop")
            assert await here.groups() == {}


async def test_a_stream_that_is_deleted_under_its_readers_is_said_and_read_from_its_first_when_it_is_back(
    place: Place, caplog: pytest.LogCaptureFixture
):
    stream = stream_of(place, start="first")
    app = place.app()
    came = listen(app, stream)
    async with working(app):
        place.publish(stream.name, b"1")
        assert await came.bodies(1) == [1]
        place.client.queue_delete(stream.name)
        await place.until(lambda: "no messages come in" in caplog.text)
        stream_of(place)
        for number in range(2, 4):
            place.publish(stream.name, str(number).encode())
        assert await came.bodies(2) == [2, 3]


async def test_the_position_of_a_silent_stream_is_noted_again(place: Place, monkeypatch: pytest.MonkeyPatch):
    """The server takes back what is held for too long."""
    monkeypatch.setattr("carteiro.backends.rabbitmq.copying._NOTED_AGAIN", 0.01)
    stream = stream_of(place, start="first")
    app = place.app()
    came = listen(app, stream)
    async with working(app):
        for number in range(3):
            place.publish(stream.name, str(number).encode())
            assert await came.bodies(1) == [number]
    assert came.nothing_more
    assert place.depth(f"{place.prefix}.{stream.topic}@shop.position") == 1


async def test_a_stream_is_read_on_after_its_connections_were_cut(place: Place, each_rabbitmq_server: RabbitServer):
    server, user = each_rabbitmq_server, place.name("user")
    server.add_user(user, "secret")
    app = Carteiro("shop", f"{server.url_with(user=user, password='secret')}?prefix={place.prefix}")
    stream = stream_of(place, start="first")
    came = listen(app, stream)
    async with working(app):
        place.publish(stream.name, b"1")
        assert await came.bodies(1) == [1]
        server.evaluate(f'rabbit_networking:close_all_user_connections(<<"{user}">>, "cut by a test")')
        place.publish(stream.name, b"2")
        assert (await came.next())[0] == 2
