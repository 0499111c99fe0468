"""Topics that keep what was handled: where a new group starts, and rewind."""

from __future__ import annotations

import pytest

from carteiro.errors import BrokerError
from carteiro.message import Action
from carteiro.ports.features import Capability
from carteiro.testing.conformance.rig import Rig, bodies, needs
from carteiro.topics import dlq_name

WEEK = 7 * 86_400.0


@pytest.mark.asyncio
class RetentionConformance:
    @needs(Capability.RETENTION)
    async def test_a_new_group_may_start_at_the_earliest(self, rig: Rig) -> None:
        first = await rig.declare("orders", "first", retain=WEEK)
        consumer = rig.broker.consume([first])
        await rig.publish("orders", b"1", b"2")
        await rig.until_done(consumer, first, 2)

        second = await rig.declare("orders", "second", start="earliest")
        consumer = rig.broker.consume([second])
        deliveries = await rig.take(consumer, second, 2)

        assert [(one.message.body, one.message.attempt) for one in deliveries] == [(b"1", 1), (b"2", 1)]

    @needs(Capability.RETENTION)
    async def test_a_new_group_starts_at_the_latest_unless_told(self, rig: Rig) -> None:
        await rig.declare("orders", "first", retain=WEEK)
        await rig.publish("orders", b"1")

        second = await rig.declare("orders", "second")

        assert await rig.until(rig.broker.consume([second]), second, "orders") == []

    @needs(Capability.RETENTION, Capability.DELAY)
    async def test_a_new_group_may_start_at_a_time(self, rig: Rig) -> None:
        first = await rig.declare("orders", "first", retain=WEEK)
        consumer = rig.broker.consume([first])
        await rig.publish("orders", b"before")
        await rig.pause(rig.delay)
        await rig.publish("orders", b"then")
        await rig.publish("orders", b"after")
        then = (await rig.until_done(consumer, first, 3))[1].message.published

        second = await rig.declare("orders", "second", start=then)

        assert bodies(await rig.until(rig.broker.consume([second]), second, "orders")) == [b"then", b"after"]

    @needs(Capability.RETENTION)
    async def test_a_group_starts_once_however_often_it_is_declared(self, rig: Rig) -> None:
        await rig.declare("orders", "first", retain=WEEK)
        await rig.publish("orders", b"1")
        second = await rig.declare("orders", "second", start="earliest")
        await rig.declare("orders", "second", start="earliest")

        assert bodies(await rig.until(rig.broker.consume([second]), second, "orders")) == [b"1"]

    @needs(Capability.RETENTION, Capability.INSPECT)
    async def test_a_kept_message_is_got_though_no_group_is_there(self, rig: Rig) -> None:
        orders = await rig.declare("orders", retain=WEEK)
        await rig.inspector.remove_group(orders.topic, orders.group)

        assert not await rig.broker.publish([rig.message("orders", b"kept")])

        late = await rig.declare("orders", "late", start="earliest")
        assert bodies(await rig.take(rig.broker.consume([late]), late)) == [b"kept"]

    @needs(Capability.RETENTION, Capability.PATTERNS)
    async def test_a_pattern_starts_with_all_that_its_topics_kept(self, rig: Rig) -> None:
        await rig.declare("orders.placed", "first", retain=WEEK)
        await rig.declare("orders.paid", "first", retain=WEEK)
        await rig.publish("orders.placed", b"1")
        await rig.publish("orders.paid", b"2")
        await rig.publish("orders.placed", b"3")

        every = await rig.declare("orders.*", "every", start="earliest")

        assert bodies(await rig.take(rig.broker.consume([every]), every, 3)) == [b"1", b"2", b"3"]

    @needs(Capability.RETENTION, Capability.DELAY)
    async def test_what_is_older_than_the_retention_is_gone(self, rig: Rig) -> None:
        await rig.declare("orders", "first", retain=rig.delay)
        await rig.publish("orders", b"old")
        await rig.pause(2 * rig.delay)

        second = await rig.declare("orders", "second", start="earliest")

        assert await rig.until(rig.broker.consume([second]), second, "orders") == []

    @needs(Capability.RETENTION, Capability.INSPECT, Capability.DELAY)
    async def test_a_rewind_delivers_again_what_was_done(self, rig: Rig) -> None:
        orders = await rig.declare("orders", retain=WEEK)
        other = await rig.declare("orders", "other")
        consumer = rig.broker.consume([orders, other])
        await rig.publish("orders", b"before")
        await rig.pause(rig.delay)
        await rig.publish("orders", b"1", b"2")
        done = await rig.until_done(consumer, orders, 3)
        await rig.until_done(consumer, other, 3)

        assert await rig.inspector.rewind(orders.topic, orders.group, done[1].message.published) == 2

        again = await rig.take(consumer, orders, 2)
        assert [(one.message.body, one.message.attempt, one.lost) for one in again] == [(b"1", 1, 0), (b"2", 1, 0)]
        assert [one.message.id for one in again] == [one.message.id for one in done[1:]]
        await rig.settle(consumer, *again)
        assert await rig.until(consumer, other, "orders") == [], "a rewind concerns its own group only"

    @needs(Capability.RETENTION, Capability.INSPECT)
    async def test_a_rewind_does_not_double_what_still_waits(self, rig: Rig) -> None:
        orders = await rig.declare("orders", retain=WEEK)
        consumer = rig.broker.consume([orders])
        await rig.publish("orders", b"done", b"claimed", b"waits")
        done, claimed = await rig.take(consumer, orders, 2)
        await rig.settle(consumer, done)

        assert await rig.inspector.rewind(orders.topic, orders.group, 0.0) == 1
        assert await rig.inspector.rewind(orders.topic, orders.group, 0.0) == 0

        await rig.settle(consumer, claimed)
        assert sorted(bodies(await rig.until(consumer, orders, "orders"))) == [b"done", b"waits"]

    @needs(Capability.RETENTION, Capability.INSPECT, Capability.ORDERED)
    async def test_a_rewind_keeps_each_keys_order(self, rig: Rig) -> None:
        accounts = await rig.declare("accounts", ordered=True, retain=WEEK)
        consumer = rig.broker.consume([accounts])
        await rig.publish("accounts", b"1", b"2", b"3", key="a")
        await rig.until_done(consumer, accounts, 2)

        assert await rig.inspector.rewind(accounts.topic, accounts.group, 0.0) == 2

        assert bodies(await rig.until_done(consumer, accounts, 3)) == [b"1", b"2", b"3"]

    @needs(Capability.RETENTION, Capability.INSPECT, Capability.ORDERED, Capability.DEAD_LETTERS, Capability.PEEK)
    async def test_a_rewind_delivers_in_the_order_published_beside_what_was_replayed(self, rig: Rig) -> None:
        accounts = await rig.declare("accounts", ordered=True, retain=WEEK)
        await rig.publish("accounts", b"1", key="a")
        consumer = rig.broker.consume([accounts])
        await rig.settle(consumer, await rig.one(consumer, accounts), action=Action.DEAD, error="busy")
        await rig.pause(rig.delay)
        await rig.publish("accounts", b"2", b"3", key="b")
        await rig.pause(rig.delay)
        await rig.publish("accounts", b"4", key="a")
        assert await rig.inspector.replay(dlq_name(accounts.topic)) == 1

        assert await rig.inspector.rewind(accounts.topic, accounts.group, 0.0) == 1

        seen = await rig.inspector.peek(accounts.topic, accounts.group)
        assert [one.body for one in seen] == [b"1", b"2", b"1", b"3", b"4"]

    @needs(Capability.RETENTION, Capability.INSPECT, Capability.ORDERED, Capability.PATTERNS)
    async def test_a_rewind_keeps_each_keys_order_beside_what_no_log_keeps(self, rig: Rig) -> None:
        await rig.declare("orders.placed", "other", retain=WEEK)
        every = await rig.declare("orders.*", ordered=True)
        consumer = rig.broker.consume([every])
        await rig.publish("orders.placed", b"1", key="a")
        await rig.publish("orders.paid", b"2", key="a")
        await rig.publish("orders.placed", b"3", key="a")
        await rig.publish("orders.paid", b"4", key="a")
        await rig.settle(consumer, await rig.one(consumer, every))

        assert await rig.inspector.rewind(every.topic, every.group, 0.0) == 1
        assert await rig.inspector.rewind(every.topic, every.group, 0.0) == 0

        assert bodies(await rig.until_done(consumer, every, 4)) == [b"1", b"2", b"3", b"4"]

    @needs(Capability.RETENTION, Capability.INSPECT, Capability.ORDERED, Capability.PATTERNS, Capability.RETRY)
    async def test_a_rewind_takes_no_attempt_of_what_no_log_keeps(self, rig: Rig) -> None:
        await rig.declare("orders.placed", "other", retain=WEEK)
        every = await rig.declare("orders.*", ordered=True)
        consumer = rig.broker.consume([every])
        await rig.publish("orders.placed", b"1", key="a")
        await rig.publish("orders.paid", b"2", key="a")
        await rig.settle(consumer, await rig.one(consumer, every))
        await rig.settle(consumer, await rig.one(consumer, every), action=Action.RETRY, error="busy")

        assert await rig.inspector.rewind(every.topic, every.group, 0.0) == 1

        again = await rig.until_done(consumer, every, 2)
        assert [(one.message.body, one.message.attempt, len(one.history)) for one in again] == [
            (b"1", 1, 0),
            (b"2", 2, 1),
        ]

    @needs(Capability.RETENTION, Capability.INSPECT)
    async def test_a_topic_that_keeps_nothing_cannot_be_rewound(self, rig: Rig) -> None:
        orders = await rig.declare("orders")

        with pytest.raises(BrokerError, match="orders"):
            await rig.inspector.rewind(orders.topic, orders.group, 0.0)
