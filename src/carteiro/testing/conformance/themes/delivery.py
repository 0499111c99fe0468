"""From publish to ack."""

from __future__ import annotations

import asyncio

import pytest

from carteiro.message import Action
from carteiro.ports.features import Capability
from carteiro.testing.conformance.rig import Rig, bodies, needs, outcome


@pytest.mark.asyncio
class DeliveryConformance:
    async def test_a_message_arrives_as_it_was_published(self, rig: Rig) -> None:
        orders = await rig.declare("orders.placed")
        consumer = rig.broker.consume([orders])
        sent = rig.message("orders.placed", b'{"id": 7}', key="seven", headers={"x-tenant": "br"})

        assert not await rig.broker.publish([sent]), "a message that a group gets was returned as one that none gets"

        delivery = await rig.one(consumer, orders)
        message = delivery.message
        assert delivery.subscription == orders
        assert (message.id, message.topic, message.body) == (sent.id, sent.topic, sent.body)
        assert (message.key, dict(message.headers)) == ("seven", {"x-tenant": "br"})
        assert message.correlation_id == sent.correlation_id
        assert message.attempt == 1
        assert delivery.history == ()
        assert delivery.lost == 0

    async def test_a_key_may_be_absent_and_is_not_the_empty_one(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        consumer = rig.broker.consume([orders])
        await rig.publish("orders", b"none", key=None)
        await rig.publish("orders", b"empty", key="")

        deliveries = await rig.take(consumer, orders, 2)

        assert {one.message.body: one.message.key for one in deliveries} == {b"none": None, b"empty": ""}

    async def test_a_message_that_no_group_gets_is_returned(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        heard, unheard = rig.message("orders"), rig.message("nobody.listens")

        unrouted = await rig.broker.publish([unheard, heard])

        assert [message.id for message in unrouted] == [unheard.id]
        assert (await rig.one(rig.broker.consume([orders]), orders)).message.id == heard.id

    async def test_a_group_does_not_get_what_was_published_before_it_was_declared(self, rig: Rig) -> None:
        await rig.publish("orders", b"before")
        orders = await rig.declare("orders")

        assert await rig.until(rig.broker.consume([orders]), orders, "orders") == []

    async def test_what_is_acked_never_comes_again(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        consumer = rig.broker.consume([orders])
        await rig.publish("orders", b"1", b"2", b"3")
        await rig.settle(consumer, *await rig.take(consumer, orders, 3))

        assert await rig.until(consumer, orders, "orders") == []

    async def test_messages_come_in_the_order_published(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        sent = [b"%d" % number for number in range(60)]
        for start in range(0, 60, 20):
            await rig.publish("orders", *sent[start : start + 20])

        assert bodies(await rig.take(rig.broker.consume([orders]), orders, 60)) == sent

    async def test_a_fetch_keeps_to_the_room_of_each_subscription(self, rig: Rig) -> None:
        orders, refunds = await rig.declare("orders"), await rig.declare("refunds")
        consumer = rig.broker.consume([orders, refunds])
        await rig.publish("orders", *[b"order"] * 5)
        await rig.publish("refunds", *[b"refund"] * 5)

        taken: list[bytes] = []
        while len(taken) < 3:
            room = {orders: 1 - taken.count(b"order"), refunds: 2 - taken.count(b"refund")}
            taken += bodies(await rig.wait(consumer.fetch(room)))

        assert sorted(taken) == [b"order", b"refund", b"refund"]

    async def test_a_subscription_without_room_gets_nothing(self, rig: Rig) -> None:
        orders, refunds = await rig.declare("orders"), await rig.declare("refunds")
        consumer = rig.broker.consume([orders, refunds])
        await rig.publish("orders", b"order")
        await rig.publish("refunds", b"refund")

        assert bodies(await rig.wait(consumer.fetch({orders: 0, refunds: 5}))) == [b"refund"]
        assert bodies(await rig.take(consumer, orders)) == [b"order"]

    async def test_a_waiting_fetch_gets_what_is_published_then(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        fetch = asyncio.ensure_future(rig.broker.consume([orders]).fetch({orders: 10}))
        await rig.now()  # the fetch had time to begin its wait
        await rig.publish("orders", b"now")

        assert bodies(await rig.wait(fetch)) == [b"now"]

    async def test_one_consumer_serves_many_subscriptions(self, rig: Rig) -> None:
        subscriptions = [await rig.declare(f"queue-{number}") for number in range(50)]
        consumer = rig.broker.consume(subscriptions)
        await rig.broker.publish([rig.message(f"queue-{number}", b"%d" % number) for number in range(50)])

        found: dict[str, bytes] = {}
        while len(found) < 50:
            for delivery in await rig.wait(consumer.fetch(dict.fromkeys(subscriptions, 1))):
                assert delivery.subscription.topic == delivery.message.topic
                assert delivery.message.topic not in found
                found[delivery.message.topic] = delivery.message.body

        assert found == {one.topic: b"%d" % number for number, one in enumerate(subscriptions)}

    async def test_nothing_to_do_is_no_error(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        consumer = rig.broker.consume([orders])

        await rig.broker.declare([])
        assert not await rig.broker.publish([])
        assert not await consumer.settle([])
        assert not await consumer.renew([])

    async def test_declaring_again_loses_and_doubles_nothing(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        await rig.publish("orders", b"1")
        await rig.declare("orders")
        await rig.publish("orders", b"2")

        before = await rig.until(rig.broker.consume([orders]), orders, "orders")

        assert bodies(before) == [b"1", b"2"]

    async def test_another_handle_sees_the_same_broker(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        other = await rig.another()
        fetch = asyncio.ensure_future(other.broker.consume([orders]).fetch({orders: 1}))
        await rig.publish("orders", b"from here")

        assert bodies(await rig.wait(fetch)) == [b"from here"]

    @needs(Capability.DURABLE)
    async def test_what_waits_survives_the_closing_of_every_handle(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        await rig.publish("orders", b"kept")
        await rig.broker.close()

        reopened = (await rig.another()).broker

        assert bodies(await rig.take(reopened.consume([orders]), orders)) == [b"kept"]

    async def test_what_a_handler_emits_is_published_with_its_ack(self, rig: Rig) -> None:
        orders, stock = await rig.declare("orders"), await rig.declare("stock")
        consumer = rig.broker.consume([orders, stock])
        await rig.publish("orders", b"order")
        delivery = await rig.one(consumer, orders)
        emitted = rig.message("stock", b"reserved")

        assert not await consumer.settle([outcome(delivery, emits=[emitted])])

        assert (await rig.one(consumer, stock)).message.id == emitted.id

    async def test_what_is_emitted_and_no_group_gets_is_counted_by_topic(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        consumer = rig.broker.consume([orders])
        await rig.publish("orders", b"1")
        unheard = rig.message("nobody.listens")

        assert not await consumer.settle([outcome(await rig.one(consumer, orders), emits=[unheard, unheard])])

        assert rig.broker.unrouted.counts[unheard.topic] == 2

    @needs(Capability.RETRY)
    async def test_emits_go_with_every_kind_of_ending(self, rig: Rig) -> None:
        orders, audit = await rig.declare("orders"), await rig.declare("audit")
        consumer = rig.broker.consume([orders, audit])
        await rig.publish("orders", b"order")
        delivery = await rig.one(consumer, orders)

        assert not await consumer.settle(
            [outcome(delivery, Action.RETRY, error="busy", emits=[rig.message("audit", b"it failed")])]
        )

        assert bodies(await rig.take(consumer, audit)) == [b"it failed"]
        assert (await rig.one(consumer, orders)).message.attempt == 2

    async def test_the_backend_says_what_it_can(self, rig: Rig) -> None:
        features = rig.broker.features

        assert features.backend
        for capability in Capability:
            support = features[capability]
            assert support.level == "native" or support.how, f"{capability.value} is {support.level}: by what, or why?"

    async def test_the_doctor_has_findings(self, rig: Rig) -> None:
        checks = await rig.backend.doctor()

        assert checks
        assert {check.status for check in checks} <= {"ok", "warning", "error"}
        assert not [check for check in checks if check.status == "error"]
