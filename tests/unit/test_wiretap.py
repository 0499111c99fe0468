"""What the wiretap notes of joins: what they emit is published when their set is full, and not before."""

from __future__ import annotations

from carteiro.backends.memory import open_backend
from carteiro.message import Action, Join, Outcome, Outgoing, Subscription
from carteiro.testing import VirtualClock
from carteiro.testing.wiretap import Wiretap

PARTS = Subscription("parts", "shop")


def outgoing(id: str, topic: str = "whole") -> Outgoing:
    return Outgoing(id, topic, b"", None, {}, "cause")


async def test_it_notes_what_the_joins_of_a_settle_have_emitted():
    tap = Wiretap(open_backend("memory://", clock=VirtualClock()))
    await tap.broker.connect()
    await tap.broker.declare([PARTS])
    await tap.broker.publish([outgoing(id, "parts") for id in ("a", "b", "c")])
    consumer = tap.broker.consume([PARTS])
    deliveries = await consumer.fetch({PARTS: 3})
    tap.published.clear()

    for delivery in deliveries:
        id = delivery.message.id
        joins = [Join("set", id, "actor", 2, [outgoing(f"full-by-{id}")])]
        assert await consumer.settle([Outcome(delivery, Action.ACK, emits=[outgoing(id)], joins=joins)]) == []

    assert [one.id for one in tap.published] == ["a", "b", "full-by-b", "c"]
    await tap.broker.close()
