"""What an operator sees and does."""

from __future__ import annotations

from datetime import timedelta

import pytest

from carteiro.message import Action, Subscription
from carteiro.ports.features import Capability
from carteiro.testing.conformance.rig import Rig, bodies, needs, outcome
from carteiro.topics import dlq_name


@pytest.mark.asyncio
class InspectionConformance:
    @needs(Capability.INSPECT, Capability.COUNTS, Capability.DELAY, Capability.RETRY, Capability.DEAD_LETTERS)
    async def test_each_message_is_counted_where_it_stands(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        consumer = rig.broker.consume([orders])
        await rig.publish("orders", b"done", b"retrying", b"dead", b"in flight")
        done, retrying, dead, _ = await rig.take(consumer, orders, 4)
        assert not await consumer.settle(
            [
                outcome(done),
                outcome(retrying, Action.RETRY, delay=3_600, error="busy"),
                outcome(dead, Action.DEAD, error="no"),
            ]
        )
        await rig.publish("orders", b"delayed", b"delayed", delay=3_600)
        await rig.publish("orders", b"waits", b"waits", b"waits")

        status = await rig.status(orders)

        assert (status.waiting, status.delayed, status.retrying, status.in_flight, status.dead) == (3, 2, 1, 1, 1)
        assert status.oldest is not None
        assert status.oldest >= 0

    @needs(Capability.INSPECT, Capability.COUNTS)
    async def test_an_idle_group_counts_nothing(self, rig: Rig) -> None:
        orders = await rig.declare("orders")

        status = await rig.status(orders)

        assert (status.waiting, status.delayed, status.retrying, status.in_flight, status.dead) == (0, 0, 0, 0, 0)
        assert status.oldest is None

    @needs(Capability.INSPECT, Capability.COUNTS)
    async def test_a_message_whose_lease_ended_waits_again(self, rig: Rig) -> None:
        orders = await rig.declare("orders", lease=rig.lease)
        consumer = rig.broker.consume([orders])
        await rig.publish("orders", b"order")
        await rig.one(consumer, orders)
        if rig.broker.features[Capability.DELAY]:
            await rig.pause(2 * rig.lease)

            status = await rig.status(orders)

            assert (status.waiting, status.in_flight) == (1, 0)

    @needs(Capability.INSPECT, Capability.ORDERED)
    async def test_what_is_behind_another_of_its_key_is_delayed(self, rig: Rig) -> None:
        accounts = await rig.declare("accounts", ordered=True)
        await rig.publish("accounts", b"1", b"2", b"3", key="a")
        await rig.publish("accounts", b"1", key="b")

        status = await rig.status(accounts)

        assert (status.waiting, status.delayed) == (2, 2)

    @needs(Capability.INSPECT, Capability.COUNTS)
    async def test_open_consumers_are_counted(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        first, second = rig.broker.consume([orders]), rig.broker.consume([orders])
        for consumer in (first, second):
            await rig.publish("orders", b"")
            await rig.settle(consumer, await rig.one(consumer, orders))
        assert (await rig.status(orders)).consumers == 2

        await first.close()

        assert (await rig.status(orders)).consumers == 1

    @needs(Capability.INSPECT, Capability.PEEK)
    async def test_a_peek_claims_nothing(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        sent = await rig.publish("orders", b"1", b"2", b"3")

        seen = await rig.inspector.peek(orders.topic, orders.group, limit=2)

        assert [(message.id, message.body) for message in seen] == [(one.id, one.body) for one in sent[:2]]
        deliveries = await rig.take(rig.broker.consume([orders]), orders, 3)
        assert [(one.message.body, one.message.attempt) for one in deliveries] == [(b"1", 1), (b"2", 1), (b"3", 1)]
        assert not await rig.inspector.peek(orders.topic, orders.group), "what is in flight is not waiting"

    @needs(Capability.INSPECT, Capability.PEEK, Capability.ORDERED, Capability.DELAY)
    async def test_a_peek_tells_what_comes_next_first_and_last_what_is_behind_another_of_its_key(
        self, rig: Rig
    ) -> None:
        accounts = await rig.declare("accounts", ordered=True)
        await rig.publish("accounts", b"later", delay=60)
        await rig.publish("accounts", b"1", b"behind", b"last", key="a")
        await rig.publish("accounts", b"2", key="b")

        seen = await rig.inspector.peek(accounts.topic, accounts.group)

        assert [message.body for message in seen] == [b"1", b"2", b"later", b"behind", b"last"]

    @needs(Capability.INSPECT, Capability.GROUPS)
    async def test_a_purge_drops_what_waits_and_leaves_the_rest(self, rig: Rig) -> None:
        orders, other = await rig.declare("orders"), await rig.declare("orders", "other")
        consumer = rig.broker.consume([orders, other])
        await rig.publish("orders", b"1", b"2", b"3")
        held = await rig.one(consumer, orders)

        assert await rig.inspector.purge(orders.topic, orders.group) == 2

        await rig.settle(consumer, held)
        assert await rig.until(consumer, orders, "orders") == []
        assert bodies(await rig.take(consumer, other, 3)) == [b"1", b"2", b"3"]

    @needs(Capability.INSPECT, Capability.ORDERED)
    async def test_a_purge_leaves_an_ordered_key_in_working_order(self, rig: Rig) -> None:
        accounts = await rig.declare("accounts", ordered=True)
        consumer = rig.broker.consume([accounts])
        await rig.publish("accounts", b"1", b"2", key="a")
        held = await rig.one(consumer, accounts)
        await rig.inspector.purge(accounts.topic, accounts.group)
        await rig.publish("accounts", b"3", b"4", key="a")
        await rig.settle(consumer, held)

        assert bodies(await rig.until_done(consumer, accounts, 2)) == [b"3", b"4"]

    @needs(Capability.INSPECT)
    async def test_a_removed_group_gets_nothing_and_its_deliveries_are_lost(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        consumer = rig.broker.consume([orders])
        await rig.publish("orders", b"1", b"2")
        held = await rig.one(consumer, orders)

        await rig.inspector.remove_group(orders.topic, orders.group)

        unrouted = await rig.broker.publish([rig.message("orders", b"3")])
        assert [message.body for message in unrouted] == [b"3"]
        assert list(await consumer.settle([outcome(held)])) == [held]
        assert orders.topic not in {status.topic for status in await rig.inspector.groups()}
        assert await rig.until(rig.broker.consume([await rig.declare("orders")]), orders, "orders") == []

    @needs(Capability.INSPECT, Capability.DEAD_LETTERS)
    async def test_dead_letters_are_found_by_queue_and_id_oldest_first(self, rig: Rig) -> None:
        orders = await _with_dead_letters(rig, b"1", b"2", b"3")
        queue = dlq_name(orders.topic)

        letters = await rig.inspector.dead_letters(queue)

        assert [one.message.body for one in letters] == [b"1", b"2", b"3"]
        assert [one.id for one in await rig.inspector.dead_letters(queue, limit=2)] == [one.id for one in letters[:2]]
        assert [one.id for one in await rig.inspector.dead_letters(ids=[letters[1].id])] == [letters[1].id]
        assert {one.id for one in letters} <= {one.id for one in await rig.inspector.dead_letters()}
        assert not await rig.inspector.dead_letters(queue + ".other")

    @needs(Capability.INSPECT, Capability.DEAD_LETTERS, Capability.DELAY)
    async def test_old_dead_letters_are_purged(self, rig: Rig) -> None:
        orders = await _with_dead_letters(rig, b"old")
        queue = dlq_name(orders.topic)
        await rig.pause(2 * rig.delay)

        assert await rig.inspector.purge_dead(queue, older_than=timedelta(days=1)) == 0
        assert await rig.inspector.purge_dead(queue, older_than=timedelta(seconds=rig.delay)) == 1
        assert not await rig.inspector.dead_letters(queue)

        await _with_dead_letters(rig, b"1", b"2")
        assert await rig.inspector.purge_dead(queue) == 2
        assert not await rig.inspector.dead_letters(queue)


async def _with_dead_letters(rig: Rig, *dead: bytes) -> Subscription:
    orders = await rig.declare("orders")
    consumer = rig.broker.consume([orders])
    await rig.publish("orders", *dead)
    for delivery in await rig.take(consumer, orders, len(dead)):
        await rig.settle(consumer, delivery, action=Action.DEAD, error="no")
    await consumer.close()
    return orders
