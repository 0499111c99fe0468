"""Publish-side dedupe: the same id to the same topic within a window is published once."""

from __future__ import annotations

import pytest

from carteiro.ports.features import Capability
from carteiro.testing.conformance.rig import Rig, bodies, needs, outcome

HOUR = 3_600.0


@pytest.mark.asyncio
class DedupeConformance:
    @needs(Capability.DEDUPE)
    async def test_the_same_id_is_dropped_within_the_window(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        consumer = rig.broker.consume([orders])
        first = rig.message("orders", b"first", dedupe=HOUR)
        again = rig.message("orders", b"again", id=first.id, dedupe=HOUR)

        assert not await rig.broker.publish([first])
        assert not await rig.broker.publish([again]), "what is dropped as a duplicate is not without a group"

        assert bodies(await rig.until(consumer, orders, "orders")) == [b"first"]

    @needs(Capability.DEDUPE)
    async def test_the_same_id_is_dropped_within_one_call(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        first = rig.message("orders", b"first", dedupe=HOUR)
        await rig.broker.publish([first, rig.message("orders", b"again", id=first.id, dedupe=HOUR)])

        assert bodies(await rig.until(rig.broker.consume([orders]), orders, "orders")) == [b"first"]

    @needs(Capability.DEDUPE)
    async def test_the_window_outlasts_the_ack(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        consumer = rig.broker.consume([orders])
        first = rig.message("orders", b"first", dedupe=HOUR)
        await rig.broker.publish([first])
        await rig.settle(consumer, await rig.one(consumer, orders))
        await rig.broker.publish([rig.message("orders", b"again", id=first.id, dedupe=HOUR)])

        assert await rig.until(consumer, orders, "orders") == []

    @needs(Capability.DEDUPE, Capability.DELAY)
    async def test_after_the_window_the_id_is_new_again(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        first = rig.message("orders", b"first", dedupe=rig.delay)
        await rig.broker.publish([first])
        await rig.pause(2 * rig.delay)
        await rig.broker.publish([rig.message("orders", b"again", id=first.id, dedupe=rig.delay)])

        assert bodies(await rig.until(rig.broker.consume([orders]), orders, "orders")) == [b"first", b"again"]

    @needs(Capability.DEDUPE)
    async def test_another_topic_has_its_own_window(self, rig: Rig) -> None:
        orders, refunds = await rig.declare("orders"), await rig.declare("refunds")
        consumer = rig.broker.consume([orders, refunds])
        order = rig.message("orders", b"order", dedupe=HOUR)
        await rig.broker.publish([order, rig.message("refunds", b"refund", id=order.id, dedupe=HOUR)])

        assert bodies(await rig.take(consumer, orders)) == [b"order"]
        assert bodies(await rig.take(consumer, refunds)) == [b"refund"]

    @needs(Capability.DEDUPE)
    async def test_what_is_emitted_is_deduped_too(self, rig: Rig) -> None:
        orders, stock = await rig.declare("orders"), await rig.declare("stock")
        consumer = rig.broker.consume([orders, stock])
        await rig.publish("orders", b"1", b"2")
        emitted = rig.message("stock", b"reserved", dedupe=HOUR)

        for delivery in await rig.take(consumer, orders, 2):
            assert not await consumer.settle([outcome(delivery, emits=[emitted])])

        assert bodies(await rig.until(consumer, stock, "stock")) == [b"reserved"]

    @needs(Capability.DEDUPE)
    async def test_what_no_group_got_can_be_published_again(self, rig: Rig) -> None:
        order = rig.message("orders", b"order", dedupe=HOUR)
        assert await rig.broker.publish([order]) == [order], "there is no group yet"

        orders = await rig.declare("orders")
        assert not await rig.broker.publish([order])

        assert bodies(await rig.until(rig.broker.consume([orders]), orders, "orders")) == [b"order"]

    async def test_without_a_window_nothing_is_dropped(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        first = rig.message("orders", b"first")
        await rig.broker.publish([first, rig.message("orders", b"again", id=first.id)])

        assert bodies(await rig.until(rig.broker.consume([orders]), orders, "orders")) == [b"first", b"again"]
