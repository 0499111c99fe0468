"""RabbitQueue: someone else's queue or one of ours, shared with clients that know nothing of carteiro."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel
from pydantic import BaseModel

from carteiro import BrokerError, Carteiro, ConfigurationError, Message, Reject, Retry, constant
from carteiro.backends.rabbitmq import RabbitExchange, RabbitQueue
from tests.rabbitmq_natives.stage import Place
from tests.redis_natives.stage import Came, listen, soon, working

KINDS = pytest.mark.parametrize("kind", ["quorum", "classic"])


class Order(BaseModel):
    id: int
    sku: str


# -- to and from plain clients ---------------------------------------------------------------------------------------


@KINDS
async def test_a_plain_clients_message_is_a_message_like_any_other(place: Place, kind: Any):
    app, came = place.app(), Came()
    jobs = RabbitQueue(place.queue("jobs", kind=kind), type=kind)

    @app.subscriber(jobs)
    async def handle(order: Order, message: Message) -> None:
        came.note(order, message)

    async with working(app):
        place.publish(jobs.name, b'{"id": 7, "sku": "A"}')
        order, message = await came.next()
        assert order == Order(id=7, sku="A")
        assert (message.topic, message.attempt, message.headers) == (jobs.topic, 1, {})
        assert message.id
        headers = {"x-tenant": "Zoë", "x-count": 3, "x-table": {"a": 1}}
        place.publish(
            jobs.name, b'{"id": 8, "sku": "B"}', headers=headers, message_id="m-8", correlation_id="c-8",
            type="order", content_type="application/json", timestamp=1_700_000_000, priority=3, app_id="legacy",
        )  # fmt: skip
        order, message = await came.next()
    assert (message.id, message.correlation_id, message.published) == ("m-8", "c-8", 1_700_000_000.0)
    assert message.headers == {
        "x-tenant": "Zoë", "x-count": "3", "x-table": '{"a":1}', "type": "order", "priority": "3",
        "content-type": "application/json", "app-id": "legacy",
    }  # fmt: skip


async def test_what_is_published_to_a_queue_a_plain_client_gets(place: Place):
    out = RabbitQueue(place.name("out"))
    async with place.app() as app:
        await app.publish(out, {"id": 7}, headers={"x-tenant": "br"})
        await app.publish_many(out, [b"\xff", "Zoë"])
    got = place.get(out.name)
    assert got is not None
    assert (got.body, got.exchange, got.properties.headers["x-tenant"]) == (b'{"id":7}', "", "br")
    assert got.properties.message_id
    assert place.bodies(out.name) == [b"\xff", '"Zoë"'.encode()]


async def test_a_publish_with_a_delay_to_a_queue_comes_when_that_is_over(place: Place):
    app, jobs = place.app(), RabbitQueue(place.name("jobs"))
    came = listen(app, jobs)
    async with working(app):
        await app.publish(jobs, "later", delay=0.3)
        await app.publish(jobs, "now")
        assert await came.bodies(2) == ["now", "later"]


async def test_a_second_message_with_an_id_is_dropped_by_the_apps_store(here: Place, tmp_path: Path):
    app, jobs = here.app(store=f"sqlite:///{tmp_path}/ids.db"), RabbitQueue(here.name("jobs"))
    came = listen(app, jobs)
    async with working(app):
        for body in (1, 2):
            await app.publish(jobs, body, id="7")
        await app.publish(jobs, 3)
        assert await came.bodies(2) == [1, 3]


# -- what the server does --------------------------------------------------------------------------------------------


async def test_what_has_a_higher_priority_comes_first(place: Place):
    jobs = RabbitQueue(place.name("jobs"), type="classic", max_priority=10)
    async with place.app() as app:
        for priority in ("1", "9", "5"):
            await app.publish(jobs, int(priority), headers={"priority": priority})
    place.publish(jobs.name, b"7", priority=7)
    app = place.app()
    came = listen(app, jobs, concurrency=1, prefetch=0)
    async with working(app):
        assert await came.bodies(4) == [9, 7, 5, 1]


async def test_what_is_too_old_or_too_many_goes(place: Place):
    short = RabbitQueue(place.name("short"), ttl=timedelta(milliseconds=50))
    few = RabbitQueue(place.name("few"), max_length=2)
    late = RabbitQueue(place.name("late"))
    async with place.app() as app:
        await app.publish(short, 1)
        await app.publish(late, 1, expires=0.05)
        await app.publish_many(few, [1, 2, 3])
    await place.until(lambda: place.depth(short.name) == 0)
    await place.until(lambda: place.depth(late.name) == 0)
    await place.until(lambda: place.depth(few.name) == 2)
    assert place.bodies(few.name) == [b"2", b"3"]


async def fill(app: Carteiro, queue: RabbitQueue) -> None:
    for number in range(50):  # a quorum queue takes some more than its limit
        await app.publish(queue, number)


async def test_a_full_queue_that_refuses_is_said_so(place: Place):
    full = RabbitQueue(place.name("full"), max_length=1, overflow="reject-publish")
    async with place.app(publish_timeout=0.5) as app:
        with pytest.raises(BrokerError, match="a queue is full"):
            await fill(app, full)


@pytest.mark.parametrize(("exclusive", "auto_delete"), [(True, False), (False, True)])
async def test_a_queue_that_goes_with_its_connection_serves_as_long_as_that(
    place: Place, exclusive: bool, auto_delete: bool
):
    app, news = place.app(), RabbitExchange(place.name("news"), type="fanout")
    queue = RabbitQueue(
        place.name("mine"), bind=news, type="classic", durable=False, exclusive=exclusive, auto_delete=auto_delete
    )
    came = Came()
    place.client.exchange_declare(news.name, "fanout", durable=True)

    @app.subscriber(queue, retry=Retry(attempts=2, backoff=constant(0.1)))
    async def handle(number: int, message: Message) -> None:
        if message.attempt == 1:
            raise ValueError("not yet")
        came.note(number, message)

    async with working(app):
        async with asyncio.timeout(30):
            while came.nothing_more:  # until the queue is there
                place.publish("", b"1", exchange=news.name)
                await asyncio.sleep(0.05)
        assert (await came.next())[1].attempt == 2
    with pytest.raises(Exception, match="NOT_FOUND"):
        place.other_channel().queue_declare(queue.name, passive=True)


# -- failure ---------------------------------------------------------------------------------------------------------


@KINDS
async def test_a_retry_comes_back_to_that_queue_alone_with_its_attempts(place: Place, kind: Any):
    app, logs = place.app(), RabbitExchange(place.name("logs"), type="fanout")
    came = Came()

    @app.subscriber(RabbitQueue(place.name("a"), bind=logs, type=kind), retry=Retry(attempts=3, backoff=constant(0.1)))
    async def handle(number: int, message: Message) -> None:
        came.note(number, message)
        if message.attempt < 3:
            raise ValueError("not yet")

    other = listen(app, RabbitQueue(place.name("b"), bind=logs))
    async with working(app):
        place.publish("k", b"7", exchange=logs.name, headers={"x-tenant": "br"})
        attempts = [(await came.next())[1] for _ in range(3)]
        assert await other.bodies(1) == [7]
    assert [message.attempt for message in attempts] == [1, 2, 3]
    assert {message.id for message in attempts} == {attempts[0].id}
    way = {"exchange": logs.name, "routing-key": "k", "x-tenant": "br"}
    assert [message.headers for message in attempts] == [way] * 3
    assert other.nothing_more


@KINDS
async def test_dead_letters_of_a_queue_are_listed_replayed_and_purged(place: Place, kind: Any):
    app, came = place.app(), Came()
    jobs = RabbitQueue(place.name("jobs"), type=kind)
    closed = True

    @app.subscriber(jobs)
    async def handle(order: Order, message: Message) -> None:
        if closed:
            raise Reject("the order is closed")
        came.note(order, message)

    async with working(app):
        place.publish(jobs.name, b'{"id": 7, "sku": "A"}')
        place.publish(jobs.name, b"no order")
        letters = await place.dead(2)
        assert {letter.queue for letter in letters} == {f"dlq_{jobs.topic}"}
        assert (await place.groups())[jobs.topic, "shop"].dead == 2
        (letter,) = (one for one in letters if "the order is closed" in one.reason)
        closed = False
        async with place.inspector() as inspector:
            assert await inspector.replay(letter.queue, ids=[letter.id]) == 1
            order, message = await came.next()
            assert (order, message.attempt) == (Order(id=7, sku="A"), 1)
            assert await inspector.purge_dead(letter.queue) == 1
            assert await inspector.dead_letters() == []


def got_one(channel: BlockingChannel, queue: str) -> bool:
    return channel.basic_get(queue)[0] is not None


async def test_a_classic_queue_counts_the_attempts_of_workers_that_died(place: Place):
    """It only says that a message was delivered before, however often."""
    jobs = RabbitQueue(place.queue("jobs", kind="classic"), type="classic")
    place.publish(jobs.name, b"7", message_id="m")
    for _ in range(3):
        channel = place.other_channel()  # a client that dies each time
        await place.until(partial(got_one, channel, jobs.name))
        channel.close()
    app = place.app()
    came = listen(app, jobs)
    async with working(app):
        message = (await came.next())[1]
        await place.until(lambda: place.depth(jobs.name) == 0)
    assert (message.id, message.attempt) == ("m", 2)
    assert place.get(jobs.name) is None


# -- groups ----------------------------------------------------------------------------------------------------------


async def test_workers_of_a_group_share_a_queue_with_each_other(place: Place):
    jobs = RabbitQueue(place.name("jobs"))
    both_have_one = asyncio.Barrier(2)
    done: list[int] = []

    def app_with_a_worker() -> Carteiro:
        app = place.app()

        @app.subscriber(jobs, concurrency=1, prefetch=0)
        async def handle(number: int) -> None:
            await both_have_one.wait()
            done.append(number)

        return app

    async with working(app_with_a_worker(), app_with_a_worker()):
        for number in range(10):
            place.publish(jobs.name, str(number).encode())
        await place.until(lambda: len(done) == 10)
    assert sorted(done) == list(range(10))


async def test_two_groups_on_one_queue_are_refused(here: Place):
    jobs = RabbitQueue(here.name("jobs"))
    shop, audit = here.app("shop"), here.app("audit")
    listen(shop, jobs)
    listen(audit, jobs)
    async with working(shop):
        with pytest.raises(ConfigurationError, match=r"cannot be for the groups `(audit|shop)` and .*RabbitExchange"):
            async with working(audit):
                pass
    async with here.inspector() as inspector:
        await inspector.remove_group(jobs.topic, "shop")
    async with working(audit):
        pass


async def test_the_command_lines_view_of_a_queue(here: Place):
    app, jobs = here.app(), RabbitQueue(here.name("my jobs"))
    listen(app, jobs)
    async with app:
        pass
    here.publish(jobs.name, b"1")
    await here.until(lambda: here.depth(jobs.name) == 1)
    status = (await here.groups())[jobs.topic, "shop"]
    assert (jobs.topic, status.waiting) == (f"queue:{here.prefix}-my%20jobs", 1)
    async with here.inspector() as inspector:
        assert await inspector.purge(jobs.topic, "shop") == 1
        await inspector.remove_group(jobs.topic, "shop")
        assert (jobs.topic, "shop") not in await here.groups()
    here.depth(jobs.name)  # the queue is for others too, and stays


async def test_a_group_that_is_removed_under_a_worker_gets_no_more(here: Place):
    app, jobs = here.app(), RabbitQueue(here.name("jobs"))
    came = listen(app, jobs)
    async with working(app):
        here.publish(jobs.name, b"1")
        assert await came.bodies(1) == [1]
        broker: Any = app.connection.broker
        await broker.remove_group(jobs.topic, "shop")
        here.publish(jobs.name, b"2")
        await here.until(lambda: here.depth(jobs.name) == 1)  # it may have been on its way, and gone back
    assert came.nothing_more


# -- what can be wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "asked", "error"),
    [
        ({"x-message-ttl": 60_000}, {}, r"queue '.*jobs' with x-message-ttl=60000, and none is asked for"),
        ({"x-max-length": 5}, {"max_length": 9}, r"queue '.*jobs' with x-max-length=5, and 9 is asked for"),
        ({}, {"type": "quorum"}, r"queue '.*jobs' with x-queue-type=(classic|none), and quorum is asked for"),
    ],
)
async def test_a_queue_with_other_arguments_is_one_clear_line(
    place: Place, there: dict[str, Any], asked: dict[str, Any], error: str
):
    place.client.queue_declare(place.name("jobs"), durable=True, arguments=there)
    app = place.app()
    listen(app, RabbitQueue(place.name("jobs"), **{"type": "classic", **asked}))
    with pytest.raises(BrokerError, match=f"{error}: .*declare=False") as raised:
        async with working(app):
            pass
    assert "\n" not in str(raised.value)


async def test_a_queue_is_taken_as_it_is_when_that_is_asked(place: Place):
    name = place.queue("legacy", kind="classic", **{"x-message-ttl": 60_000, "x-max-priority": 4})
    app = place.app()
    came = listen(app, RabbitQueue(name, declare=False))
    async with working(app):
        place.publish(name, b"7")
        assert await came.bodies(1) == [7]
        await app.publish(RabbitQueue(name, declare=False), 8)
        assert await came.bodies(1) == [8]


async def test_an_exchange_of_another_type_is_one_clear_line(place: Place):
    place.client.exchange_declare(place.name("logs"), "fanout", durable=True)
    app, logs = place.app(), RabbitExchange(place.name("logs"), type="direct")
    listen(app, RabbitQueue(place.name("jobs"), bind=logs))
    said = r"exchange '.*logs' with type=fanout, and direct is asked for: .*declare=False"
    with pytest.raises(BrokerError, match=said):
        async with working(app):
            pass
    async with place.app() as other:
        with pytest.raises(BrokerError, match=said):
            await other.publish(logs, 1)
        taken = RabbitExchange(logs.name, type="direct", declare=False)
        await other.publish(taken, 1)


async def test_a_queue_that_is_not_there_is_named(place: Place):
    app, missing = place.app(), RabbitQueue(place.name("missing"), declare=False)
    listen(app, missing)
    with pytest.raises(BrokerError, match=r"has no queue '.*missing' in vhost '/'"):
        async with working(app):
            pass
    async with place.app() as other:
        with pytest.raises(BrokerError, match=r"has no queue '.*missing'"):
            await soon(other.publish(missing, 1))
        with pytest.raises(BrokerError, match=r"has no exchange '.*nowhere'"):
            await soon(other.publish(RabbitExchange(place.name("nowhere"), declare=False), 1))


async def test_a_target_that_cannot_be_fails_the_attempt_and_not_its_neighbours(place: Place):
    place.client.exchange_declare(place.name("logs"), "fanout", durable=True)
    app, jobs = place.app(), RabbitQueue(place.name("jobs"))
    came = Came()

    @app.subscriber(jobs, retry=Retry(attempts=1))
    @app.publisher(RabbitExchange(place.name("logs"), type="direct"))
    async def job(number: int, message: Message) -> int | None:
        came.note(number, message)
        return number if number == 3 else None

    async with working(app):
        for number in range(6):
            place.publish(jobs.name, str(number).encode())
        (letter,) = await place.dead()
    assert letter.message.body == b"3"
    assert "with type=fanout, and direct is asked for" in letter.reason
    assert sorted(await came.bodies(6)) == list(range(6))
    assert place.depth(jobs.name) == 0


async def test_a_queue_that_is_deleted_under_its_users_is_made_again(place: Place):
    app, jobs = place.app(), RabbitQueue(place.name("jobs"))
    came = listen(app, jobs)
    async with working(app), place.app("office") as office:
        await office.publish(jobs, 1)
        assert await came.bodies(1) == [1]
        place.client.queue_delete(jobs.name)
        await soon(office.publish(jobs, 2))
        assert await came.bodies(1) == [2]


async def test_a_topic_that_looks_like_a_queue_is_refused(here: Place):
    app = here.app()
    listen(app, "queue:jobs")
    with pytest.raises(ConfigurationError, match="with `queue:` the topics of RabbitMQ's own queues"):
        async with working(app):
            pass


# -- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direct", [True, False])
async def test_a_plain_clients_request_is_answered_in_the_queue_that_it_names(place: Place, direct: bool):
    app, jobs = place.app(), RabbitQueue(place.name("jobs"))

    @app.subscriber(jobs)
    async def double(number: int) -> int:
        return 2 * number

    answers: list[tuple[str | None, bytes]] = []
    channel = place.other_channel()
    queue = "amq.rabbitmq.reply-to" if direct else channel.queue_declare("", exclusive=True).method.queue
    channel.basic_consume(
        queue,
        lambda _channel, _method, properties, body: answers.append((properties.correlation_id, body)),
        auto_ack=True,
    )
    async with working(app):
        channel.basic_publish("", jobs.name, b"21", BasicProperties(reply_to=queue, correlation_id="c-1"))
        await place.until(lambda: place.connection.process_data_events(0) or answers)
    assert answers == [("c-1", b"42")]
