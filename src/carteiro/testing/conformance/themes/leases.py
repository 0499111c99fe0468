"""Leases, and the fence: who lost its lease can settle nothing."""

from __future__ import annotations

import asyncio

import pytest

from carteiro.message import Action, Delivery, Subscription, Write
from carteiro.ports.broker import Consumer
from carteiro.ports.features import Capability
from carteiro.testing.conformance.rig import LONG, Rig, bodies, needs, outcome


@pytest.mark.asyncio
class LeasesConformance:
    async def test_what_is_claimed_is_invisible_to_others(self, rig: Rig) -> None:
        orders = await rig.declare("orders", lease=LONG)
        first, second = rig.broker.consume([orders]), rig.broker.consume([orders])
        await rig.publish("orders", b"claimed")
        delivery = await rig.one(first, orders)

        assert await rig.until(second, orders, "orders") == []
        await rig.settle(first, delivery)

    async def test_a_lease_that_ends_makes_the_message_visible_again(self, rig: Rig) -> None:
        lapsed, again, _, _ = await _lapse(rig)

        assert again.message.id == lapsed.message.id
        assert again.message.attempt == 2
        assert again.lost == 1, "an attempt that never ended counts as lost"
        assert again.history == ()

    async def test_every_lost_lease_is_an_attempt(self, rig: Rig) -> None:
        orders = await rig.declare("orders", lease=rig.lease)
        consumer = rig.broker.consume([orders])
        await rig.publish("orders", b"poison")

        deliveries = [await rig.one(consumer, orders) for _ in range(4)]

        assert [one.message.attempt for one in deliveries] == [1, 2, 3, 4]
        assert [one.lost for one in deliveries] == [0, 1, 2, 3]

    @pytest.mark.parametrize("action", list(Action))
    async def test_who_lost_its_lease_settles_nothing(self, rig: Rig, action: Action) -> None:
        if action not in rig.actions:
            pytest.skip(f"{rig.broker.features.backend} ends no delivery so")
        lapsed, again, first, second = await _lapse(rig)
        stock = await rig.declare("stock")

        lost = await first.settle([outcome(lapsed, action, error="late", emits=[rig.message("stock", b"never")])])

        assert list(lost) == [lapsed], "a late settle must be returned as lost"
        assert await rig.until(rig.broker.consume([stock]), stock, "stock") == [], "what a lost attempt emits was sent"
        await rig.settle(second, again)

    async def test_who_lost_its_lease_cannot_renew_it(self, rig: Rig) -> None:
        lapsed, again, first, second = await _lapse(rig)

        assert list(await first.renew([lapsed])) == [lapsed]
        assert not await second.renew([again])

    async def test_only_the_lost_of_a_batch_are_refused(self, rig: Rig) -> None:
        other = await rig.declare("other")
        lapsed, again, first, second = await _lapse(rig, other)
        await rig.publish("other", b"held")
        held = await rig.one(first, other)

        assert list(await first.settle([outcome(lapsed), outcome(held)])) == [lapsed]

        assert await rig.until(first, other, "other") == [], "what was still held must be done"
        await rig.settle(second, again)

    async def test_a_late_settle_holds_where_nobody_has_taken_the_message_back(self, rig: Rig) -> None:
        orders = await rig.declare("orders", lease=rig.lease)
        consumer = rig.broker.consume([orders])
        await rig.publish("orders", b"slow")
        delivery = await rig.one(consumer, orders)
        await rig.now()
        if rig.broker.features[Capability.DELAY]:
            await rig.pause(2 * rig.lease)

        lost = await consumer.settle([outcome(delivery)])

        again = await rig.until(consumer, orders, "orders")
        if lost:  # the broker takes a message back at the end of its lease, and not when the next one claims
            assert [(one.message.body, one.message.attempt) for one in again] == [(b"slow", 2)]
        else:
            assert again == []

    async def test_a_delivery_is_settled_once(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        consumer = rig.broker.consume([orders])
        await rig.publish("orders", b"1")
        delivery = await rig.one(consumer, orders)
        await rig.settle(consumer, delivery)

        for action in rig.actions:
            assert list(await consumer.settle([outcome(delivery, action, error="twice")])) == [delivery]
        assert list(await consumer.renew([delivery])) == [delivery]
        assert await rig.until(consumer, orders, "orders") == []

    async def test_a_renewed_lease_does_not_end(self, rig: Rig) -> None:
        # On a machine that stalls for a whole lease it is rightly lost, so then the test tries a longer one.
        for lease in (rig.lease, 5 * rig.lease, 25 * rig.lease):
            orders = await rig.declare(f"orders-{lease}", lease=lease)
            first, second = rig.broker.consume([orders]), rig.broker.consume([orders])
            await rig.publish(f"orders-{lease}", b"slow")
            delivery = await rig.one(first, orders)
            if await _held_by_renewing(rig, first, second, delivery, 3 * lease):
                return
        pytest.fail("a lease ended though it was renewed all the time")

    async def test_a_release_gives_the_attempt_back(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        consumer = rig.broker.consume([orders])
        await rig.publish("orders", b"interrupted")
        released = await rig.one(consumer, orders)
        await rig.settle(consumer, released, action=Action.RELEASE)

        again = await rig.one(consumer, orders)

        assert (again.message.attempt, again.lost, again.history) == (1, 0, ())

    async def test_a_release_does_not_give_the_token_back(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        consumer = rig.broker.consume([orders])
        await rig.publish("orders", b"interrupted")
        released = await rig.one(consumer, orders)
        await rig.settle(consumer, released, action=Action.RELEASE)
        assert list(await consumer.settle([outcome(released)])) == [released], "settled after its release"
        again = await rig.one(consumer, orders)

        assert list(await consumer.settle([outcome(released)])) == [released], "settled by the attempt before"
        await rig.settle(consumer, again)

    @needs(Capability.STORE, Capability.ATOMIC)
    async def test_who_lost_its_lease_writes_nothing(self, rig: Rig) -> None:
        lapsed, again, first, second = await _lapse(rig)
        key = rig.topic("result")

        await first.settle([outcome(lapsed, writes=[Write(key, b"late")])])
        assert await rig.store.get([key]) == {}

        assert not await second.settle([outcome(again, writes=[Write(key, b"in time")])])
        assert (await rig.store.get([key]))[key].value == b"in time"


async def _lapse(rig: Rig, *beside: Subscription) -> tuple[Delivery, Delivery, Consumer, Consumer]:
    """A claim whose lease ended and the one after it, which still holds; and the consumers of both.

    The first one has the subscriptions `beside` too.
    """
    orders = await rig.declare("orders", lease=rig.lease)
    first = rig.broker.consume([orders, *beside])
    await rig.publish("orders", b"order")
    lapsed = await rig.one(first, orders)
    longer = await rig.lease_longer(orders)
    second = rig.broker.consume([longer])
    again = await rig.one(second, longer)
    assert bodies([lapsed, again]) == [b"order", b"order"]
    return lapsed, again, first, second


async def _held_by_renewing(rig: Rig, first: Consumer, second: Consumer, delivery: Delivery, seconds: float) -> bool:
    """Renew all the time until so many seconds have passed; False if the lease was lost to `second` nevertheless."""
    rival = asyncio.ensure_future(second.fetch({delivery.subscription: 1}))
    until = asyncio.ensure_future(rig.pause(seconds))
    lost = False
    while not until.done() and not lost:
        lost = bool(await first.renew([delivery]))
        await asyncio.wait({until, rival}, timeout=0.01, return_when=asyncio.FIRST_COMPLETED)
    if lost:
        assert [one.message.attempt for one in await rig.wait(rival)] == [2], "lost, and to nobody"
    else:
        await rig.settle(first, delivery)
        assert not rival.done(), "claimed by another while it was held"
    for task in (rival, until):
        task.cancel()
    await asyncio.gather(rival, until, return_exceptions=True)
    return not lost
