"""A look at the server's health, with a message that passes through it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from carteiro.backends.rabbitmq.server import Server
from carteiro.errors import BrokerError
from carteiro.message import Action, Outcome, Outgoing, Subscription, new_id
from carteiro.ports.broker import Check

if TYPE_CHECKING:
    from carteiro.backends.rabbitmq.broker import RabbitBroker

_OLDEST: Final = (3, 10)
_OWN_TIMEOUT: Final = (3, 12)


async def examine(broker: RabbitBroker, server: Server) -> Sequence[Check]:
    """The broker is opened and closed for it."""
    try:
        await broker.connect()
        link = await server.link()
        answers = Check("reachable", "ok", f"`{link.name}` answers, its exchange is `{server.names.prefix}`")
        return [answers, *_version(link.version), await _passage(broker, server.address.timeout)]
    except BrokerError as error:
        return [Check("reachable", "error", str(error))]
    finally:
        await broker.close()


def _version(version: tuple[int, ...]) -> list[Check]:
    name = ".".join(map(str, version))
    if version < _OLDEST:
        return [Check("version", "error", f"RabbitMQ {name}: carteiro needs 3.10, whose quorum queues have delays")]
    if version < _OWN_TIMEOUT:
        text = f"RabbitMQ {name}: a handler may take no longer than the server's consumer_timeout, 30 min by default"
        return [Check("version", "warning", f"{text}; from 3.12 on carteiro's own queues have no such limit")]
    return [Check("version", "ok", f"RabbitMQ {name}")]


async def _passage(broker: RabbitBroker, patience: float) -> Check:
    """Whether this user may do what it takes. A topic with `$` is in no one's pattern."""
    own = Subscription(f"$doctor.{new_id()}", "doctor", ephemeral=True)
    try:
        async with asyncio.timeout(patience):
            await broker.declare([own])
            consumer = broker.consume([own])
            await broker.publish([Outgoing(new_id(), own.topic, b"", None, {}, "doctor")])
            await consumer.settle([Outcome(one, Action.ACK) for one in await consumer.fetch({own: 1})])
            await consumer.close()
    except BrokerError as error:
        return Check("passage", "error", str(error))
    except TimeoutError:
        return Check("passage", "error", f"a message did not come through within {patience:g} s")
    return Check("passage", "ok", "a message was published, claimed and acked")
