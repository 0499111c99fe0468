"""RedisList: what any client pushes is handled, what is published any client pops."""

from __future__ import annotations

import asyncio
from typing import Annotated

import pytest

from carteiro import BrokerError, Emit, Message, Retry, Topic, constant
from carteiro.backends.redis import RedisList, RedisStream
from tests.redis_natives.stage import Came, Place, listen, soon, working


async def test_what_a_plain_client_pushes_is_handled_in_its_order(place: Place):
    app = place.app()
    jobs = RedisList(place.name("jobs"))
    place.client.rpush(jobs.name, *range(100))

    came = listen(app, jobs, concurrency=1)
    async with working(app):
        assert await came.bodies(100) == list(range(100))
        for number in (100, 101):  # an idle worker is told
            place.client.rpush(jobs.name, number)
            body, message = await came.next()
            assert (body, message.topic, message.attempt) == (number, jobs.topic, 1)
        await place.done(jobs.topic)
    assert place.client.exists(jobs.name) == 0


async def test_a_list_that_is_filled_in_leaps_is_emptied_each_time(place: Place):
    app = place.app()
    jobs = RedisList(place.name("jobs"))

    came = listen(app, jobs)
    async with working(app):
        for leap in range(20):
            pushed = [leap * 1000 + number for number in range(leap * 37 + 1)]
            place.client.rpush(jobs.name, *pushed)
            assert sorted(await came.bodies(len(pushed))) == pushed
    assert came.nothing_more


async def test_bodies_of_any_bytes_arrive_as_they_are(place: Place):
    app, came = place.app(), Came()
    jobs = RedisList(place.name("jobs"))
    bodies = [b"\x00\xff\r\n$-1", "Zoë Müller ✓".encode(), b"", b"x" * 300, bytes(range(256)) * 400, b"y" * 2_000_000]
    place.client.rpush(jobs.name, *bodies)

    @app.subscriber(jobs, concurrency=1)
    async def job(body: bytes, message: Message) -> None:
        came.note(body, message)

    async with working(app):
        assert await came.bodies(len(bodies)) == bodies


async def test_a_body_that_does_not_fit_is_dead_with_the_reason(place: Place):
    app, came = place.app(), Came()
    jobs = RedisList(place.name("jobs"))

    @app.subscriber(jobs)
    async def job(number: int, message: Message) -> None:
        came.note(number, message)

    async with working(app):
        place.client.rpush(jobs.name, b"\xff\xfe", "7")
        assert await came.bodies(1) == [7]
        await place.done(jobs.topic)
    (letter,) = await place.dead()
    assert (letter.queue, letter.message.body) == (f"dlq_{jobs.topic}", b"\xff\xfe")
    assert "InvalidBody" in letter.reason


async def test_a_failed_element_is_tried_again_and_dies_in_the_end(here: Place):
    app, came = here.app(), Came()
    jobs = RedisList(here.name("jobs"))

    @app.subscriber(jobs, retry=Retry(attempts=3, backoff=constant(0.01)))
    async def job(number: int, message: Message) -> None:
        came.note(message.attempt, message)
        if number == 0 or message.attempt < 2:
            raise ValueError("not yet")

    async with working(app):
        here.client.rpush(jobs.name, 7)
        assert await came.bodies(2) == [1, 2]
        here.client.rpush(jobs.name, 0)
        assert await came.bodies(3) == [1, 2, 3]
        await here.done(jobs.topic)
    (letter,) = await here.dead()
    assert (letter.message.body, len(letter.history)) == (b"0", 3)


async def test_each_group_gets_every_element(place: Place):
    apps = [place.app("stock"), place.app("payment")]
    jobs = RedisList(place.name("jobs"))
    all_came = [listen(app, jobs) for app in apps]

    async with working(*apps):
        place.client.rpush(jobs.name, *range(300))
        for came in all_came:
            assert sorted(await came.bodies(300)) == list(range(300))


async def test_no_more_is_taken_than_there_is_room_for(here: Place):
    app, jobs = here.app(), RedisList(here.name("jobs"))
    begun, go_on = asyncio.Event(), asyncio.Event()
    handled: list[int] = []

    @app.subscriber(jobs, concurrency=2, prefetch=3)
    async def job(number: int) -> None:
        begun.set()
        await go_on.wait()
        handled.append(number)

    here.client.rpush(jobs.name, *range(100))
    async with working(app):
        await soon(begun.wait())
        await here.until(lambda: here.client.llen(jobs.name) <= 95)
        status = await here.group(jobs.topic)
        assert status.left <= 5
        assert here.client.llen(jobs.name) == 100 - status.left
        go_on.set()
        await here.until(lambda: len(handled) == 100)


async def test_a_worker_of_many_lists_has_one_connection(own_place: Place):
    app = own_place.app()
    lists = [RedisList(f"jobs-{number}") for number in range(30)]
    all_came = [listen(app, one) for one in lists]

    async with working(app):
        for number, one in enumerate(lists):
            own_place.client.rpush(one.name, number)
        assert [await came.bodies(1) for came in all_came] == [[number] for number in range(30)]
        carteiros = [one for one in own_place.text.client_list() if one["name"] == "carteiro"]
        assert len(carteiros) == 1


async def test_what_is_published_to_a_list_a_plain_client_pops(place: Place):
    out = RedisList(place.name("out"))
    async with place.app() as app:
        await app.publish(out, {"id": 7})
        await app.publish_many(out, [b"\xff", "Zoë"])
    assert place.client.lrange(out.name, 0, -1) == [b'{"id":7}', b"\xff", '"Zoë"'.encode()]


def test_code_without_a_loop_publishes_to_a_list(here: Place):
    out = RedisList(here.name("out"))
    here.app().publish_sync(out, 7)
    assert here.client.lrange(out.name, 0, -1) == [b"7"]


async def test_what_a_handler_emits_is_in_the_list_if_and_only_if_it_succeeds(place: Place):
    app = place.app()
    jobs, out = RedisList(place.name("jobs")), RedisList(place.name("out"))
    seen: list[int] = []

    @app.subscriber(jobs, retry=Retry(attempts=2, backoff=constant(0.01)))
    @app.publisher(out)
    async def job(number: int, emit: Annotated[Emit[str], Topic(out)], message: Message) -> int:
        emit("emitted")
        seen.append(place.client.llen(out.name))
        if message.attempt == 1:
            raise ValueError("not yet")
        return number

    async with working(app):
        place.client.rpush(jobs.name, 7)
        await place.until(lambda: place.client.llen(out.name))
        await place.done(jobs.topic)
    assert seen == [0, 0]
    assert place.client.lrange(out.name, 0, -1) == [b'"emitted"', b"7"]


async def test_a_key_that_holds_something_else_is_named_at_start_up(here: Place):
    here.client.set(here.name("jobs"), "not a list")
    app = here.app()

    @app.subscriber(RedisList(here.name("jobs")))
    async def job(number: int) -> None: ...

    with pytest.raises(BrokerError, match=f"`{here.name('jobs')}` is no list: .* has a string of this name"):
        async with working(app):
            pass


async def test_publishing_to_a_key_that_holds_something_else_fails_and_does_nothing(here: Place):
    here.client.rpush(here.name("taken"), "a list")
    good, wrong = RedisList(here.name("good")), RedisStream(here.name("taken"))
    async with here.app() as app:
        results = await asyncio.gather(app.publish(good, 1), app.publish(wrong, 2), return_exceptions=True)
    assert isinstance(results[1], BrokerError)
    assert "is no stream" in str(results[1])
    assert here.client.lrange(good.name, 0, -1) == [b"1"]
    assert here.client.lrange(here.name("taken"), 0, -1) == [b"a list"]


async def test_an_emit_to_a_key_that_holds_something_else_is_a_failed_attempt(here: Place):
    app, jobs = here.app(), RedisList(here.name("jobs"))
    here.client.set(here.name("taken"), "a string")

    @app.subscriber(jobs, retry=Retry(attempts=1))
    @app.publisher(RedisList(here.name("taken")))
    async def job(number: int) -> int | None:
        return number or None

    async with working(app):
        here.client.rpush(jobs.name, 7, 0)
        async with asyncio.timeout(30):
            while not await here.dead():
                pass
    (letter,) = await here.dead()
    assert letter.message.body == b"7"
    assert "is no list" in letter.reason


async def test_after_a_flush_the_list_is_handled_as_before(own_place: Place):
    app = own_place.app()

    came = listen(app, RedisList("jobs"))
    async with working(app):
        own_place.client.rpush("jobs", 1)
        assert await came.bodies(1) == [1]
        own_place.client.flushall()
        own_place.client.rpush("jobs", 2)
        assert await came.bodies(1) == [2]


async def test_after_a_broken_connection_an_idle_worker_is_told_of_new_elements(own_place: Place):
    app = own_place.app()

    came = listen(app, RedisList("jobs"))
    async with working(app):
        own_place.client.rpush("jobs", 1)
        assert await came.bodies(1) == [1]
        own_place.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        own_place.client.execute_command("CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes")
        own_place.client.rpush("jobs", 2)
        assert await came.bodies(1) == [2]
