"""From a message to all that comes of it. Time passes when a test says so: a day of retries takes milliseconds."""

from carteiro.testing import TestApp

from service_name.handlers import send_text
from service_name.messages import SendText, Sent

from .conftest import FakeGateway

TEXT = SendText(id="a", user_id=1, content="hi")


async def test_the_type_selects_the_handler(t: TestApp, gateway: FakeGateway) -> None:
    await t.publish("user_channel", TEXT)
    await t.publish("user_channel", {"type": "send_audio", "id": "b", "user_id": 2, "url": "https://example.com/b"})
    await t.idle()
    assert sorted(gateway.sent) == [(1, "hi"), (2, "listen: https://example.com/b")]
    assert {sent.id for sent in t.published("message_sent")} == {"a", "b"}


async def test_a_message_that_comes_twice_is_sent_once(t: TestApp, gateway: FakeGateway) -> None:
    await t.publish("user_channel", TEXT)
    await t.publish("user_channel", TEXT)
    await t.advance(minutes=1)
    assert gateway.sent == [(1, "hi")]


async def test_a_failure_is_tried_again(t: TestApp, gateway: FakeGateway) -> None:
    gateway.failures = 2
    await t.publish("user_channel", TEXT)
    await t.idle()
    assert t.published("message_sent") == []
    await t.advance(minutes=5)
    assert t.published("message_sent") == [Sent(id="a", user_id=1)]
    assert t.dead("user_channel") == []


async def test_a_dead_letter_goes_back_after_a_while(t: TestApp, gateway: FakeGateway) -> None:
    gateway.failures = 5
    await t.publish("user_channel", TEXT)
    await t.advance(minutes=5)
    (letter,) = t.dead("user_channel")
    assert letter.reason == "GatewayDown: no answer"
    await t.advance(minutes=15)
    assert gateway.sent == [(1, "hi")]
    assert t.dead("user_channel") == []


async def test_what_no_retry_can_help_is_dead_at_once(t: TestApp) -> None:
    await t.publish("user_channel", SendText(user_id=0, content="hi"))
    await t.publish("user_channel", {"type": "send_text", "id": "b", "user_id": "nobody", "content": "hi"})
    await t.publish("user_channel", {"type": "send_pigeon"})
    await t.idle()
    assert len(t.dead("user_channel")) == 3


async def test_a_worker_that_dies_loses_nothing(t: TestApp, gateway: FakeGateway) -> None:
    t.crash_at(send_text, "before_ack")
    await t.publish("user_channel", TEXT)
    await t.advance(minutes=1)
    assert t.crashes == 1
    assert gateway.sent == [(1, "hi"), (1, "hi")]  # at least once: it died before it could say that it had sent it
    assert t.published("message_sent") == [Sent(id="a", user_id=1)]
