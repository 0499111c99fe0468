"""A handler is a function: call it."""

from service_name.handlers import send_audio, send_text, user_status
from service_name.messages import SendAudio, SendText, Sent, UserStatus

from .conftest import FakeGateway


async def test_a_text_is_sent(gateway: FakeGateway) -> None:
    sent = await send_text(SendText(id="a", user_id=1, content="hi"), gateway)
    assert sent == Sent(id="a", user_id=1)
    assert gateway.sent == [(1, "hi")]


async def test_audio_is_sent_as_a_link(gateway: FakeGateway) -> None:
    audio = SendAudio.model_validate({"user_id": 1, "url": "https://example.com/hi.ogg"})
    await send_audio(audio, gateway)
    assert gateway.sent == [(1, "listen: https://example.com/hi.ogg")]


async def test_the_status_is_the_gateways(gateway: FakeGateway) -> None:
    assert await user_status(1, gateway) == UserStatus(user_id=1, online=True)
