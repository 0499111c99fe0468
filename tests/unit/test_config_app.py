"""An app that follows a file of queues: what the file says, where the code leaves it open."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qs, urlsplit

import pytest

from carteiro import Carteiro, ConfigurationError, Emit, Reject, Reprocess, Retry, Router, Topic
from carteiro.message import Subscription
from carteiro.router import Subscriber
from carteiro.testing import TestApp
from tests.unit.config_files import TOUR, written


def app_of(folder: Path, text: str, name: str | None = None, **options: object) -> Carteiro:
    return Carteiro.from_config(written(folder, text), name, **options)


def only_subscriber(app: Carteiro, broker: str = "default") -> tuple[Subscription, Subscriber]:
    ((subscription, (subscriber,)),) = app.declared(broker).items()
    return subscription, subscriber


async def handle(body: str) -> None: ...


ONE = "queues: [{name: orders, type: memory}]"


def test_the_app_is_called_as_asked_or_as_in_the_file_or_as_the_file(tmp_path: Path):
    assert app_of(tmp_path, f"app: shop\n{ONE}", "other").name == "other"
    assert app_of(tmp_path, f"app: shop\n{ONE}").name == "shop"
    assert app_of(tmp_path, ONE).name == "queues"


def test_options_of_the_class_go_with_the_file(tmp_path: Path):
    app = app_of(tmp_path, f"store: sqlite:///a.db\n{ONE}", lease=7)
    app.subscriber("orders")(handle)
    assert only_subscriber(app)[0].lease == 7


def test_the_decorator_holds_and_the_file_says_the_rest(tmp_path: Path):
    app = app_of(
        tmp_path,
        """\
        queues:
          - name: orders
            type: memory
            timeout: 30
            concurrency: 5
            prefetch: 7
            lease: 2m
            retry: {attempts: 9}
            dlq: {reprocess_every: 1h}
        """,
    )
    app.subscriber("orders", concurrency=2, retry=Retry(attempts=1))(handle)
    subscription, subscriber = only_subscriber(app)
    assert (subscriber.concurrency, subscriber.prefetch, subscriber.timeout) == (2, 7, 30)
    assert (subscriber.retry, subscriber.reprocess) == (Retry(attempts=1), Reprocess(3600.0, 3))
    assert subscription.lease == 120


def test_dead_letters_false_on_the_decorator_drops_what_the_file_would_reprocess(tmp_path: Path):
    app = app_of(tmp_path, "queues: [{name: orders, type: memory, dlq: {reprocess_every: 1h}}]")
    app.subscriber("orders", dead_letters=False)(handle)
    assert only_subscriber(app)[1].reprocess is None


def test_to_reprocess_what_the_file_does_not_keep_is_refused(tmp_path: Path):
    app = app_of(tmp_path, "queues: [{name: orders, type: memory, enable_dlq: false}]")
    app.subscriber("orders", reprocess=Reprocess())(handle)
    with pytest.raises(ConfigurationError, match=r"`handle` .* is to reprocess dead letters and keeps none"):
        app.declared()


def test_subscribers_without_a_queue_are_all_named_with_the_nearest(tmp_path: Path):
    app = app_of(tmp_path, ONE)
    app.subscriber("ordrs")(handle)
    app.subscriber("something.else")(handle)
    app.subscriber("pays.*")(handle)
    with pytest.raises(ConfigurationError) as raised:
        app.declared()
    first, second, third = str(raised.value).splitlines()
    assert first.startswith("subscriber `handle` (test_config_app.py:")
    assert first.endswith("of `ordrs` has no queue in " + str(tmp_path / "queues.yaml") + ": did you mean `orders`?")
    assert second.endswith("queues.yaml: add `- name: something.else` there")
    assert third.endswith("queues.yaml: add `- name: pays.*` there")


def test_a_routers_prefix_is_part_of_the_queues_name(tmp_path: Path):
    app = app_of(tmp_path, "queues: [{name: orders.placed, type: memory, timeout: 4}]")
    router = Router(prefix="orders.")
    router.subscriber("placed")(handle)
    app.include(router)
    assert only_subscriber(app)[1].timeout == 4


SEVERAL = """\
queues:
  - {name: orders.placed, type: memory}
  - {name: orders.paid, type: memory}
  - {name: audit.log, type: memory, broker_url: other}
"""


async def test_each_queue_is_used_on_its_own_broker(tmp_path: Path):
    app = app_of(tmp_path, SEVERAL)

    @app.subscriber("orders.placed")
    @app.publisher("audit.log")
    async def place(body: str) -> str:
        return body

    @app.subscriber("audit.log")
    async def audit(body: str) -> None: ...

    async with TestApp(app) as t:
        await t.publish("orders.placed", "x")
        await t.idle()
        assert t.published("audit.log") == ["x"]
        assert set(t.groups()) == {("orders.placed", "queues")}
        assert set(t.groups("memory")) == {("audit.log", "queues")}


def test_dead_letters_are_subscribed_to_where_their_queue_is(tmp_path: Path):
    app = app_of(tmp_path, SEVERAL)
    app.subscriber("dlq_audit.log")(handle)
    assert only_subscriber(app, "memory")[0].topic == "dlq_audit.log"


async def test_the_dead_letters_of_one_group_are_where_their_queue_is_too(tmp_path: Path):
    app = app_of(tmp_path, SEVERAL)
    told: list[str] = []

    @app.subscriber("audit.log", group="billing")
    async def bill(body: str) -> None:
        raise Reject("no")

    @app.subscriber("audit.log", group="sales")
    async def sell(body: str) -> None: ...

    @app.subscriber("dlq_audit.log.billing")
    async def alarm(body: str) -> None:
        told.append(body)

    app.subscriber("dlq_audit.log", broker="default")(handle)
    assert [one.topic for one in app.declared("default")] == ["dlq_audit.log"]
    async with TestApp(app) as t:
        await t.publish("audit.log", "x")
        await t.idle()
    assert told == ["x"]


def test_a_pattern_goes_to_the_broker_of_the_queues_that_it_matches(tmp_path: Path):
    app = app_of(tmp_path, SEVERAL)
    app.subscriber("audit.{name}")(handle)
    assert only_subscriber(app, "memory")[0].topic == "audit.*"


def test_a_pattern_over_several_brokers_is_refused(tmp_path: Path):
    app = app_of(tmp_path, SEVERAL)
    app.subscriber("#")(handle)
    with pytest.raises(ConfigurationError, match=r"several brokers, `orders.paid` .*:3.* and `audit.log` .*:4"):
        app.declared()


CLOSED = """\
queues:
  - {name: orders, type: memory, enable_consumer: false}
  - {name: payments, type: memory}
  - {name: invoices, type: memory, enable_publisher: false}
"""


async def test_what_is_not_to_be_consumed_waits_for_others_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "carteiro.app")
    app = app_of(tmp_path, CLOSED)
    handled: list[str] = []
    app.subscriber("orders")(handled.append)
    app.subscriber("payments", runs_in="loop")(handle)
    async with TestApp(app) as t:
        await t.publish("orders", "x")
        await t.idle()
        assert t.groups()["orders", "queues"].waiting == 1
    assert handled == []
    assert [record.message for record in caplog.records] == [
        f"queues: not consumed here, since enable_consumer is false: orders ({tmp_path / 'queues.yaml'}:2)"
    ]


async def test_a_service_that_consumes_nothing_waits_and_publishes(tmp_path: Path):
    app = app_of(tmp_path, CLOSED)
    app.subscriber("orders")(handle)
    running = asyncio.create_task(app.run())
    await app.ready()
    await app.publish("orders", "x")
    app.stop()
    await running
    async with TestApp(app) as t:
        await t.publish("payments", "x")
        await t.advance(hours=1)


def test_a_pattern_for_what_is_consumed_here_and_what_is_not_is_refused_with_both_places(tmp_path: Path):
    app = app_of(tmp_path, CLOSED)
    app.subscriber("*")(handle)
    with pytest.raises(ConfigurationError) as raised:
        app.declared()
    file = tmp_path / "queues.yaml"
    assert str(raised.value).endswith(
        f"of `*` is for `invoices` ({file}:4) and for `orders` ({file}:2), where enable_consumer is false: subscribe "
        "to each queue that is consumed here"
    )


@pytest.mark.parametrize(("broker", "consumes"), [("default", False), ("memory", True)])
def test_a_pattern_with_a_broker_is_for_the_queues_on_that_one(tmp_path: Path, broker: str, consumes: bool):
    text = """\
    queues:
      - {name: orders.placed, type: memory, enable_consumer: false}
      - {name: orders.paid, type: memory, broker_url: other}
    """
    app = app_of(tmp_path, text)
    app.subscriber("orders.*", broker=broker)(handle)
    assert only_subscriber(app, broker)[1].consumes == consumes


async def test_a_publish_to_a_closed_queue_is_refused_at_once(tmp_path: Path):
    app = app_of(tmp_path, CLOSED)
    refusal = "`invoices` takes nothing from this service: enable_publisher is false at .*queues.yaml:4"
    async with app:
        for attempt in (app.publish("invoices", 1), app.publish_many("invoices", [1]), app.request("invoices", 1)):
            with pytest.raises(ConfigurationError, match=refusal):
                await attempt
    with pytest.raises(ConfigurationError, match=refusal):
        app.publish_sync("invoices", 1)


def test_a_publisher_to_a_closed_queue_is_refused_at_the_start(tmp_path: Path):
    app = app_of(tmp_path, CLOSED)
    app.subscriber("payments")(app.publisher("invoices")(handle))
    with pytest.raises(ConfigurationError, match=r"subscriber `handle` .* `invoices` takes nothing from this service"):
        app.declared()


async def test_an_emit_to_a_closed_queue_is_refused_at_the_start(tmp_path: Path):
    app = app_of(tmp_path, CLOSED)

    @app.subscriber("payments")
    async def pay(body: str, invoice: Annotated[Emit[str], Topic("invoices")]) -> None: ...

    with pytest.raises(ConfigurationError, match=r"the Emit of `.*pay` .* `invoices` takes nothing from this service"):
        await app.run()


def test_who_does_not_run_here_may_publish_to_what_is_closed_here(tmp_path: Path):
    app = app_of(tmp_path, CLOSED)
    app.subscriber("orders")(app.publisher("invoices")(handle))
    assert only_subscriber(app)[1].publishes[0].topic == "invoices"


async def test_what_fails_for_good_is_dropped_and_counted_where_no_dead_letters_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    app = app_of(tmp_path, "queues: [{name: orders, type: memory, enable_dlq: false, retry: {attempts: 2}}]")

    @app.subscriber("orders")
    async def fail(number: int) -> None:
        raise ValueError("no")

    async with TestApp(app) as t:
        await t.publish_many("orders", [1, "not a number"])
        await t.advance(hours=1)
        assert app.worker is not None
        assert (t.dead(), app.worker.dropped) == ([], 2)
        assert t.groups()["orders", "queues"].waiting == 0
    dropped = [record for record in caplog.records if record.message.startswith("dropped")]
    assert [record.levelname for record in dropped] == ["ERROR", "ERROR"]
    assert dropped[1].message.endswith(" of orders [queues], which keeps no dead letters (2 so far): ValueError: no")


async def test_the_keys_of_a_file_lead_to_a_rabbitmq(
    tmp_path: Path, rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
):
    parts = urlsplit(rabbitmq_url)
    monkeypatch.setenv("RABBIT_PASSWORD", parts.password or "guest")
    app = app_of(
        tmp_path,
        f"""\
        defaults:
          type: rabbitmq
          broker_url: {parts.hostname}
          port: {parts.port}
          username: {parts.username or "guest"}
          password: ${{RABBIT_PASSWORD}}
          vhost: /
          heartbeat: 600
          prefix: {parse_qs(parts.query)["prefix"][0]}
        queues: [{{name: orders}}, {{name: notes, type: memory}}]
        """,
    )
    handled: asyncio.Queue[str] = asyncio.Queue()

    @app.subscriber("orders")
    @app.publisher("notes")
    async def order(body: str) -> str:
        return f"noted {body}"

    @app.subscriber("notes")
    async def note(body: str) -> None:
        handled.put_nowait(body)

    running = asyncio.create_task(app.run())
    await app.ready()
    await app.publish("orders", "x")
    assert await asyncio.wait_for(handled.get(), 20) == "noted x"
    app.stop()
    await running


async def test_the_tours_app_handles_by_type(monkeypatch: pytest.MonkeyPatch):
    from docs.tour import queues

    assert queues.app.url == "amqps://localhost:5671?heartbeat=600"
    assert TOUR.name == "queues.yaml"
    async with TestApp(queues.app) as t:
        asked = {"type": "send_text", "user_id": 7, "content": "hello"}
        assert await t.request("user_channel", asked) == "to 7: hello"
        await t.publish("user_channel", {"user_id": 7, "content": "…"}, type="send_audio")
        await t.publish("user_channel", {"user_id": 7, "content": "…"}, type="send_video")
        await t.idle()
        (unknown,) = t.dead("user_channel")
        assert unknown.reason.startswith("NoHandler")


async def test_tasks_are_sent_and_run_beside_the_queues_of_the_file_which_says_nothing_of_them(tmp_path: Path):
    app = app_of(tmp_path, ONE)

    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with TestApp(app) as t:
        assert await t.result(await add.delay(1, 2)) == 3
