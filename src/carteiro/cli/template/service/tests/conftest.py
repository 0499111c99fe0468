from collections.abc import AsyncIterator

import pytest
from carteiro.testing import TestApp

from service_name.app import app
from service_name.gateway import Gateway, GatewayDown, UnknownUser, get_gateway


class FakeGateway(Gateway):
    """Keeps what it sends. It is down for the first `failures` calls, and knows no user below 1."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.sent: list[tuple[int, str]] = []

    async def send(self, user_id: int, content: str) -> None:
        if self.failures:
            self.failures -= 1
            raise GatewayDown("no answer")
        if user_id < 1:
            raise UnknownUser(f"there is no user {user_id}")
        self.sent.append((user_id, content))

    async def is_online(self, user_id: int) -> bool:
        return user_id == 1


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()


@pytest.fixture
async def t(gateway: FakeGateway) -> AsyncIterator[TestApp]:
    """The service at work: the real engine, a broker in memory, a clock that stands still until a test moves it."""
    async with TestApp(app, overrides={get_gateway: lambda: gateway}) as running:
        yield running
