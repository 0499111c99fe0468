"""RedisStream: someone else's stream and group, read and written by clients that know nothing of carteiro."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from carteiro import Emit, Message, Retry, Topic, UnsupportedFeature, constant
from carteiro.backends.redis import RedisList, RedisStream
from tests.redis_natives.stage import Came, Place, listen, soon, working


async def test_an_entry_with_a_body_is_a_message_and_its_other_fields_are_headers(place: Place):
    app, stream = place.app(), RedisStream(place.name("events"))
    came = listen(app, stream)

    async with working(app):
        fields = {"body": '{"id":7}', "key": "k-7", "correlation-id": "c-7", "x-tenant": "Zoë", "x-raw": b"\xff\xe2a"}
        entry = place.text.xadd(stream.name, fields)
        body, message = await came.next()
        await place.done(stream.topic)

    assert (body, message.key, message.correlation_id) == ({"id": 7}, "k-7", "c-7")
    assert (message.topic, message.id) == (stream.topic, f"{stream.name}:{entry}")
    assert message.headers == {"stream-id": entry, "x-tenant": "Zoë", "x-raw": "\\xff\\xe2a"}


class Order(BaseModel):
    id: int
    sku: str


async def test_an_entry_without_a_body_is_the_object_of_its_fields(place: Place):
    app, came, stream = place.app(), Came(), RedisStream(place.name("orders"))

    @app.subscriber(stream)
    async def handle(order: Order, message: Message) -> None:
        came.note(order, message)

    async with working(app):
        place.client.xadd(stream.name, {"id": 7, "sku": 'Zoë "A"\n\x00'})
        order, message = await came.next()
        assert order == Order(id=7, sku='Zoë "A"\n\x00')
        assert message.headers.keys() == {"stream-id"}
        place.client.xadd(stream.name, {"id": 8, "sku": b"\xff"})
        await place.until(lambda: place.client.xinfo_groups(stream.name)[0]["lag"] in (0, None))
        await place.done(stream.topic)
    (letter,) = await place.dead()
    assert letter.queue == f"dlq_{stream.topic}"


async def test_the_field_of_the_body_can_have_another_name(place: Place):
    app, stream = place.app(), RedisStream(place.name("events"), body="payload")
    came = listen(app, stream)

    async with working(app):
        place.client.xadd(stream.name, {"payload": b"\xff\x00", "body": "a header"})
        body, message = await came.next()
        assert (body, message.headers["body"]) == (b"\xff\x00", "a header")
        await app.publish(stream, 7)
        assert (await came.next())[0] == 7


async def test_what_is_published_to_a_stream_reads_back_as_the_same_message(place: Place):
    app, stream = place.app(), RedisStream(place.name("events"))
    came = listen(app, stream)

    async with working(app):
        for body in ({"id": 7}, "Zoë", b"\xff\x00" * 40_000):
            headers = {"x-tenant": "Müller ✓"}
            id = await app.publish(stream, body, key="k", headers=headers, type="order", correlation_id="c")
            value, message = await came.next()
            assert (value, message.id, message.key, message.correlation_id) == (body, id, "k", "c")
            assert message.headers.items() >= {"x-tenant": "Müller ✓", "type": "order"}.items()


async def test_what_is_published_to_a_stream_a_plain_client_reads(place: Place):
    stream = RedisStream(place.name("events"), maxlen=100)
    async with place.app() as app:
        id = await app.publish(stream, {"id": 7}, key="k", headers={"x-tenant": "br"})
        (entry,) = place.text.xrange(stream.name)
        assert entry[1] == {"body": '{"id":7}', "id": id, "key": "k", "x-tenant": "br"}
        await app.publish_many(stream, range(1000))
    assert 100 <= place.client.xlen(stream.name) <= 300


async def test_a_foreign_consumer_of_the_same_group_shares_the_work(place: Place):
    app, stream = place.app(), RedisStream(place.name("events"), group="their-group")
    place.client.xgroup_create(stream.name, "their-group", mkstream=True)
    for number in range(10):
        place.client.xadd(stream.name, {"body": number})
    theirs = place.text.xreadgroup("their-group", "they", {stream.name: ">"}, count=4)
    came = listen(app, stream)

    async with working(app):
        assert sorted(await came.bodies(6)) == [4, 5, 6, 7, 8, 9]
        await place.done(stream.topic, "their-group")
        pending = place.text.xpending(stream.name, "their-group")
        assert (pending["pending"], pending["consumers"]) == (4, [{"name": "they", "pending": 4}])
        # One that waits is served at once, as by any other.
        waiting = asyncio.to_thread(place.text.xreadgroup, "their-group", "they", {stream.name: ">"}, 1, 20_000)
        served = asyncio.create_task(waiting)
        await place.until(lambda: any(one["cmd"].startswith("xreadgroup") for one in place.text.client_list()))
        place.client.xadd(stream.name, {"body": 10})
        assert (await soon(served))[0][1][0][1] == {"body": "10"}
        place.client.xadd(stream.name, {"body": 11})
        assert await came.bodies(1) == [11]
    assert len(theirs[0][1]) == 4
    assert came.nothing_more


async def test_no_more_is_taken_from_a_group_than_there_is_room_for(here: Place):
    app, stream = here.app(), RedisStream(here.name("events"))
    begun, go_on = asyncio.Event(), asyncio.Event()

    @app.subscriber(stream, concurrency=2, prefetch=3, start="earliest")
    async def handle(number: int) -> None:
        begun.set()
        await go_on.wait()

    for number in range(100):
        here.client.xadd(stream.name, {"body": number})
    async with working(app):
        await soon(begun.wait())
        left = here.text.xreadgroup("shop", "they", {stream.name: ">"}, count=1000)
        assert len(left[0][1]) >= 95
        go_on.set()


async def test_each_group_gets_every_entry(place: Place):
    apps = [place.app("stock"), place.app("payment")]
    stream = RedisStream(place.name("events"))
    all_came = [listen(app, stream, concurrency=1) for app in apps]

    async with working(*apps):
        for number in range(200):
            place.client.xadd(stream.name, {"body": number})
        for came in all_came:
            assert await came.bodies(200) == list(range(200))
    assert all(came.nothing_more for came in all_came)


async def test_a_new_group_begins_at_the_end_or_where_it_is_told(place: Place):
    stream = RedisStream(place.name("events"))
    place.client.xadd(stream.name, {"body": "old"})
    late, early = place.app("late"), place.app("early")
    lately = listen(late, stream)
    all_of_it = listen(early, stream, start="earliest")

    async with working(late, early):
        assert await all_of_it.bodies(1) == ["old"]
        place.client.xadd(stream.name, {"body": "new"})
        assert await all_of_it.bodies(1) == ["new"]
        assert await lately.bodies(1) == ["new"]


async def test_a_group_gets_what_came_while_none_of_its_workers_ran(here: Place):
    app, stream = here.app(), RedisStream(here.name("events"))
    came = listen(app, stream)
    async with app:
        pass  # declared, and gone
    here.client.xadd(stream.name, {"body": 7})
    async with working(app):
        assert await came.bodies(1) == [7]


async def test_the_messages_of_a_key_are_handled_in_order_across_retries(here: Place):
    app, stream = here.app(), RedisStream(here.name("accounts"))
    done: dict[str, list[int]] = {"a": [], "b": []}

    @app.subscriber(stream, ordered=True, retry=Retry(attempts=5, backoff=constant(0.01)))
    async def apply(number: int, message: Message) -> None:
        if number % 7 == 0 and message.attempt < 3:
            raise ValueError("not yet")
        assert message.key is not None
        done[message.key].append(number)

    async with working(app):
        for number in range(60):
            here.client.xadd(stream.name, {"body": number, "key": "ab"[number % 2]})
        await here.until(lambda: len(done["a"]) + len(done["b"]) == 60)
    assert done == {"a": list(range(0, 60, 2)), "b": list(range(1, 60, 2))}


async def test_what_a_handler_emits_to_a_stream_goes_with_the_ack(place: Place):
    app = place.app()
    jobs, out = RedisList(place.name("jobs")), RedisStream(place.name("out"))
    seen: list[int] = []

    @app.subscriber(jobs, retry=Retry(attempts=2, backoff=constant(0.01)))
    async def job(number: int, emit: Annotated[Emit[Any], Topic(out)], message: Message) -> None:
        emit({"id": number}, key="k", headers={"x-tenant": "br"})
        seen.append(place.client.xlen(out.name))
        if message.attempt == 1:
            raise ValueError("not yet")

    async with working(app):
        place.client.rpush(jobs.name, 7)
        await place.until(lambda: place.client.xlen(out.name))
        await place.done(jobs.topic)
    assert seen == [0, 0]
    ((_, entry),) = place.text.xrange(out.name)
    assert entry["body"] == '{"id":7}'
    assert (entry["key"], entry["x-tenant"]) == ("k", "br")


@pytest.mark.parametrize("harm", ["flushall", "group", "stream"])
async def test_a_stream_or_a_group_that_was_taken_away_is_made_again(own_place: Place, harm: str):
    app, stream = own_place.app(), RedisStream("events")
    came = listen(app, stream)

    async with working(app):
        own_place.client.xadd("events", {"body": 1})
        assert await came.bodies(1) == [1]
        match harm:
            case "flushall":
                own_place.client.flushall()
            case "group":
                own_place.client.xgroup_destroy("events", "shop")
            case _:
                own_place.client.delete("events")
        own_place.client.xadd("events", {"body": 2})
        assert await came.bodies(1) == [2]


async def test_after_a_flush_nothing_is_skipped_where_nothing_had_come_before(own_place: Place):
    app, stream = own_place.app(), RedisStream("events")
    came = listen(app, stream)
    async with working(app):
        own_place.client.execute_command("FLUSHALL")
        for number in range(100):
            own_place.client.xadd("events", {"body": number})
        assert sorted(await came.bodies(100)) == list(range(100))


async def test_after_a_flush_a_process_that_only_publishes_makes_the_group_again(own_place: Place):
    app, stream = own_place.app(), RedisStream("events")
    came = listen(app, stream)
    async with app:
        own_place.client.flushall()
        await app.publish("anything", 1)
        own_place.client.xadd("events", {"body": 7})
    async with working(app):
        assert await came.bodies(1) == [7]


async def test_a_header_that_would_be_another_field_is_refused(here: Place):
    async with here.app() as app:
        with pytest.raises(UnsupportedFeature, match="has a field `body` of its own"):
            await app.publish(RedisStream("events"), 7, headers={"body": "x"})
