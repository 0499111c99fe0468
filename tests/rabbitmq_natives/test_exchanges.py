"""Exchanges of each type: what is bound to them, what is published to them, with a plain client on the other side."""

from __future__ import annotations

from typing import Annotated, Any

import pytest

from carteiro import Carteiro, Emit, Header, Message, Topic, Unroutable
from carteiro.backends.rabbitmq import RabbitBinding, RabbitExchange, RabbitQueue
from tests.rabbitmq_natives.stage import Place
from tests.redis_natives.stage import Came, listen, soon, working


async def test_a_direct_exchange_leads_to_the_queues_bound_with_its_very_key(place: Place):
    app, logs = place.app(), RabbitExchange(place.name("logs"), type="direct")
    errors = listen(app, RabbitQueue(place.name("errors"), bind=logs, routing_key="error"))
    grave = listen(app, RabbitQueue(place.name("grave"), bind=[logs.to("error"), logs.to("fatal")]))

    async with working(app):
        for level in ("error", "info", "fatal"):
            place.publish(level, f'"{level}"'.encode(), exchange=logs.name)
        assert sorted(await grave.bodies(2)) == ["error", "fatal"]
        assert await errors.bodies(1) == ["error"]
    assert errors.nothing_more
    assert grave.nothing_more


async def test_a_topic_exchange_leads_to_the_queues_whose_pattern_matches(place: Place):
    app, topics = place.app(), RabbitExchange(place.name("topics"), type="topic")
    came = listen(app, RabbitQueue(place.name("br-users"), bind=topics, routing_key="user.*.br"))

    async with working(app):
        for key in ("user.7.pt", "user.7.br", "user.br", "user.8.br"):
            place.publish(key, b"1", exchange=topics.name)
        messages = [(await came.next())[1] for _ in range(2)]
    assert [message.headers["routing-key"] for message in messages] == ["user.7.br", "user.8.br"]
    assert {message.headers["exchange"] for message in messages} == {topics.name}
    assert {message.topic for message in messages} == {f"queue:{place.name('br-users')}"}
    assert came.nothing_more


async def test_a_headers_exchange_leads_to_the_queues_whose_arguments_fit(place: Place):
    app, docs = place.app(), RabbitExchange(place.name("docs"), type="headers")
    both = RabbitBinding(docs, arguments={"x-match": "all", "format": "pdf", "kind": "report"})
    either = RabbitBinding(docs, arguments={"x-match": "any", "format": "pdf", "kind": "report"})
    reports = listen(app, RabbitQueue(place.name("reports"), bind=both))
    some = listen(app, RabbitQueue(place.name("some"), bind=either))

    async with working(app):
        for number, headers in enumerate([{"format": "pdf"}, {"format": "pdf", "kind": "report"}, {"format": "png"}]):
            place.publish("", str(number).encode(), exchange=docs.name, headers=headers)
        assert await some.bodies(2) == [0, 1]
        assert await reports.bodies(1) == [1]
        await app.publish(docs, 3, headers={"format": "pdf", "kind": "report"})
        assert await reports.bodies(1) == [3]
        assert await some.bodies(1) == [3]
    assert reports.nothing_more
    assert some.nothing_more


async def test_an_exchange_bound_to_another_gets_what_comes_there(place: Place):
    app, logs = place.app(), RabbitExchange(place.name("logs"), type="topic")
    archive = RabbitExchange(place.name("archive"), type="fanout", bind=RabbitBinding(logs, "#.error"))
    came = listen(app, RabbitQueue(place.name("archived"), bind=archive))

    async with working(app):
        place.publish("shop.info", b"1", exchange=logs.name)
        place.publish("shop.error", b"2", exchange=logs.name)
        place.publish("whatever", b"3", exchange=archive.name)
        assert await came.bodies(2) == [2, 3]
    assert came.nothing_more


async def test_each_group_that_subscribes_to_an_exchange_gets_all_that_comes_there(place: Place):
    shop, audit = place.app("shop"), place.app("audit")
    errors = RabbitExchange(place.name("logs"), type="direct", routing_key="error")
    in_shop, in_audit = listen(shop, errors), listen(audit, errors)

    async with working(shop):
        pass  # from now on the group is there
    place.publish("error", b"1", exchange=errors.name)
    async with working(shop, audit):
        await shop.publish(errors, 2)
        assert await in_shop.bodies(2) == [1, 2]
        assert await in_audit.bodies(1) == [2]


async def test_a_broadcast_on_an_exchange_reaches_every_process(place: Place):
    broadcasts = RabbitExchange(place.name("broadcasts"), type="fanout")
    apps = [place.app(), place.app()]
    all_came = [listen(app, broadcasts, group=None) for app in apps]

    async with working(*apps), place.app("office") as office:
        await office.publish(broadcasts, "everyone")
        assert [await came.bodies(1) for came in all_came] == [["everyone"], ["everyone"]]


async def test_what_is_published_to_an_exchange_a_plain_client_gets_as_amqp_has_it(place: Place):
    logs = RabbitExchange(place.name("logs"), type="direct")
    async with place.app() as app:
        await app.publish(logs, "into the void")  # declares it
        queue = place.queue("errors")
        place.client.queue_bind(queue, logs.name, "error")
        id = await app.publish(
            logs.to("error"), {"id": 7}, key="k", type="order", correlation_id="c", expires=60,
            headers={"x-tenant": "Zoë", "priority": "5"},
        )  # fmt: skip
        await app.publish(logs, 8, key="error")  # without a routing key, the message's key is it
        await app.publish(logs.to("info"), 9)
    got, second = place.get(queue), place.get(queue)
    assert got is not None
    assert second is not None
    assert (got.body, got.exchange, got.routing_key) == (b'{"id":7}', logs.name, "error")
    properties = got.properties
    assert (properties.message_id, properties.correlation_id, properties.type) == (id, "c", "order")
    assert (properties.priority, properties.delivery_mode) == (5, 2)
    assert 0 < int(properties.expiration) <= 60_000
    assert properties.headers["x-tenant"] == "Zoë"
    assert properties.headers["carteiro-key"] == "k"
    assert (second.body, place.get(queue)) == (b"8", None)


async def test_what_a_handler_returns_and_emits_goes_to_exchanges_and_queues(place: Place):
    app = place.app()
    logs, out = RabbitExchange(place.name("logs"), type="topic"), place.queue("out")
    audit, jobs = place.queue("audit"), RabbitQueue(place.name("jobs"))

    @app.subscriber(jobs)
    @app.publisher(RabbitQueue(out))
    @app.publisher(logs, key=lambda number: f"done.{number}")
    async def job(number: int, log: Annotated[Emit[str], Topic(logs.to("emitted"))]) -> int:
        log(f"job {number}")
        return number

    async with working(app):
        await app.publish(logs, "nobody is bound", key="x")
        place.client.queue_bind(audit, logs.name, "#")
        place.publish(jobs.name, b"7")
        await place.until(lambda: place.depth(audit) == 2 and place.depth(out) == 1)
    assert place.bodies(out) == [b"7"]
    got = [place.get(audit), place.get(audit)]
    assert {(one.routing_key, one.body) for one in got if one} == {("emitted", b'"job 7"'), ("done.7", b"7")}


async def test_the_routing_key_is_a_header_of_the_handlers(here: Place):
    app, came = here.app(), Came()
    topics = RabbitExchange(here.name("topics"), type="topic")

    @app.subscriber(RabbitQueue(here.name("users"), bind=topics, routing_key="user.#"))
    async def handle(body: Any, key: Annotated[str, Header("routing-key")], message: Message) -> None:
        came.note((key, body), message)

    async with working(app):
        await app.publish(topics.to("user.7"), 7)
        assert await came.bodies(1) == [("user.7", 7)]


async def test_with_mandatory_an_exchange_that_leads_nowhere_is_an_error(here: Place):
    async with here.app() as app:
        void = RabbitExchange(here.name("void"), type="fanout")
        await app.publish(void, 1)
        with pytest.raises(Unroutable):
            await app.publish(void, 2, mandatory=True)


def test_code_without_a_loop_publishes_to_an_exchange(here: Place):
    queue = here.queue("out")
    app: Carteiro = here.app()
    app.publish_sync(RabbitExchange("amq.fanout", type="fanout"), 1)
    app.publish_sync(RabbitQueue(queue), 2)
    assert here.bodies(queue) == [b"2"]
    app._sync._close()


async def test_an_exchange_that_is_deleted_under_a_publisher_is_made_again(place: Place):
    logs = RabbitExchange(place.name("logs"), type="fanout")
    app = place.app()
    came = listen(app, RabbitQueue(place.name("all"), bind=logs))
    async with working(app):
        await app.publish(logs, 1)
        place.client.exchange_delete(logs.name)
        await soon(app.publish(logs, 2))
        assert await came.bodies(2) == [1, 2]
