"""Middleware that nobody installed costs nothing: there is no trace of it in what runs."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from carteiro import Carteiro, Message, Outgoing
from carteiro.engine.attempt import with_middleware
from carteiro.testing import TestApp


async def handler(message: Message) -> None: ...


async def layer(message: Message, call_next: Callable[[Message], Awaitable[Any]]) -> Any:
    return await call_next(message)


def test_without_consume_middleware_the_handlers_own_call_is_what_runs():
    assert with_middleware(handler, ()) is handler
    assert with_middleware(handler, (layer,)) is not handler


async def test_without_publish_middleware_nothing_looks_at_what_goes_out(monkeypatch: pytest.MonkeyPatch):
    app = Carteiro("shop")

    @app.subscriber("orders")
    @app.publisher("invoices")
    async def invoice(order: int) -> int:
        return order

    async with TestApp(app) as t:

        async def intercepted(message: Outgoing) -> list[Outgoing]:
            raise AssertionError("nobody installed it")

        monkeypatch.setattr(app.connection.publisher, "intercept", intercepted)
        await t.publish("orders", 1)
        await t.idle()
        assert t.published("invoices") == [1]
