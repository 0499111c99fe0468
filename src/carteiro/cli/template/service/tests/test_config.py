from typing import get_args

import pytest
from carteiro import Carteiro
from carteiro.testing import TestApp

from service_name.messages import AnyCommand
from service_name.settings import settings

URL = "@example-url@"


def test_the_environment_names_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_TYPE", "@broker@")
    monkeypatch.setenv("BROKER_URL", URL)
    assert Carteiro.from_config(settings.queues_file).urls == {"default": URL}


def test_without_an_environment_it_is_the_embedded_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BROKER_TYPE", raising=False)
    monkeypatch.delenv("BROKER_URL", raising=False)
    assert Carteiro.from_config(settings.queues_file).urls == {"default": "sqlite:///carteiro.db"}


async def test_every_type_of_message_has_a_handler(t: TestApp) -> None:
    commands = get_args(get_args(AnyCommand)[0])
    for command in commands:
        await t.publish("user_channel", {"type": command.model_fields["type"].default})
    await t.idle()
    reasons = [letter.reason for letter in t.dead("user_channel")]
    assert len(reasons) == len(commands)
    assert [reason for reason in reasons if not reason.startswith("InvalidBody")] == []
