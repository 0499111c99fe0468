"""Order by key: one at a time for each key, in the order published, across retries, releases and crashes."""

from __future__ import annotations

import asyncio

import pytest

from carteiro.message import Action
from carteiro.ports.features import Capability
from carteiro.testing.conformance.rig import Rig, bodies, needs, outcome


@pytest.mark.asyncio
class OrderingConformance:
    @needs(Capability.ORDERED)
    async def test_a_key_has_one_message_in_flight(self, rig: Rig) -> None:
        accounts = await rig.declare("accounts", ordered=True)
        first, second = rig.broker.consume([accounts]), rig.broker.consume([accounts])
        await rig.publish("accounts", b"a1", b"a2", key="a")
        await rig.publish("accounts", b"b1", b"b2", key="b")

        heads = await rig.take(first, accounts, 2)
        assert bodies(heads) == [b"a1", b"b1"]

        waiting = asyncio.ensure_future(second.fetch({accounts: 10}))
        await rig.now()
        assert not waiting.done(), "a key's second message was claimed while its first was in flight"
        await rig.settle(first, heads[1])
        assert bodies(await rig.wait(waiting)) == [b"b2"]

    @needs(Capability.ORDERED)
    async def test_one_fetch_takes_one_message_of_a_key(self, rig: Rig) -> None:
        accounts = await rig.declare("accounts", ordered=True)
        consumer = rig.broker.consume([accounts])
        await rig.publish("accounts", b"1", b"2", b"3", key="a")

        for expected in (b"1", b"2", b"3"):
            deliveries = await rig.wait(consumer.fetch({accounts: 10}))
            assert bodies(deliveries) == [expected]
            await rig.settle(consumer, *deliveries)

    @needs(Capability.ORDERED, Capability.RETRY)
    async def test_what_follows_a_failed_message_of_its_key_waits(self, rig: Rig) -> None:
        accounts = await rig.declare("accounts", ordered=True)
        consumer = rig.broker.consume([accounts])
        await rig.publish("accounts", b"a1", b"a2", key="a")
        await rig.publish("accounts", b"b1", b"b2", key="b")
        a1, b1 = await rig.take(consumer, accounts, 2)
        assert not await consumer.settle([outcome(a1, Action.RETRY, delay=rig.delay, error="busy"), outcome(b1)])

        came: list[tuple[bytes, int]] = []
        while len(came) < 3:
            delivery = await rig.one(consumer, accounts)
            came.append((delivery.message.body, delivery.message.attempt))
            await rig.settle(consumer, delivery)

        assert came == [(b"b2", 1), (b"a1", 2), (b"a2", 1)]

    @needs(Capability.ORDERED)
    async def test_what_follows_a_lost_message_of_its_key_waits(self, rig: Rig) -> None:
        accounts = await rig.declare("accounts", ordered=True, lease=rig.lease)
        consumer = rig.broker.consume([accounts])
        await rig.publish("accounts", b"1", b"2", key="a")
        await rig.one(consumer, accounts)  # whose worker dies

        deliveries = await rig.wait(consumer.fetch({accounts: 10}))

        assert [(one.message.body, one.message.attempt) for one in deliveries] == [(b"1", 2)]

    @needs(Capability.ORDERED)
    async def test_a_released_message_comes_before_the_rest_of_its_key(self, rig: Rig) -> None:
        accounts = await rig.declare("accounts", ordered=True)
        consumer = rig.broker.consume([accounts])
        await rig.publish("accounts", b"1", b"2", key="a")
        await rig.settle(consumer, await rig.one(consumer, accounts), action=Action.RELEASE)

        assert bodies(await rig.until_done(consumer, accounts, 2)) == [b"1", b"2"]

    @needs(Capability.ORDERED, Capability.DEAD_LETTERS)
    async def test_a_dead_message_lets_the_rest_of_its_key_go_on(self, rig: Rig) -> None:
        accounts = await rig.declare("accounts", ordered=True)
        consumer = rig.broker.consume([accounts])
        await rig.publish("accounts", b"1", b"2", key="a")
        await rig.settle(consumer, await rig.one(consumer, accounts), action=Action.DEAD, error="no")

        assert bodies(await rig.until_done(consumer, accounts, 1)) == [b"2"]

    @needs(Capability.ORDERED, Capability.DELAY)
    async def test_a_delayed_message_holds_back_what_its_key_publishes_later(self, rig: Rig) -> None:
        accounts = await rig.declare("accounts", ordered=True)
        consumer = rig.broker.consume([accounts])
        await rig.broker.publish(
            [
                rig.message("accounts", b"1", key="a", delay=rig.delay),
                rig.message("accounts", b"2", key="a"),
                rig.message("accounts", b"another key", key="b"),
            ]
        )

        assert bodies(await rig.until_done(consumer, accounts, 3)) == [b"another key", b"1", b"2"]

    @needs(Capability.ORDERED)
    async def test_messages_without_a_key_are_free(self, rig: Rig) -> None:
        accounts = await rig.declare("accounts", ordered=True)
        consumer = rig.broker.consume([accounts])
        await rig.publish("accounts", b"1", b"2", b"3")

        assert bodies(await rig.take(consumer, accounts, 3)) == [b"1", b"2", b"3"]

    @needs(Capability.ORDERED, Capability.GROUPS)
    async def test_another_group_of_the_topic_need_not_be_ordered(self, rig: Rig) -> None:
        ordered = await rig.declare("accounts", "ordered", ordered=True)
        free = await rig.declare("accounts", "free")
        consumer = rig.broker.consume([ordered, free])
        await rig.publish("accounts", b"1", b"2", key="a")

        assert bodies(await rig.take(consumer, free, 2)) == [b"1", b"2"]
        assert bodies(await rig.wait(consumer.fetch({ordered: 10}))) == [b"1"]

    @needs(Capability.ORDERED, Capability.RETRY)
    async def test_what_was_claimed_before_its_queue_was_ordered_waits_for_its_turn_when_it_is_handed_back(
        self, rig: Rig
    ) -> None:
        free = await rig.declare("accounts")
        consumer = rig.broker.consume([free])
        await rig.publish("accounts", b"1", b"2", b"3", b"4", key="a")
        first, second, third = await rig.take(consumer, free, 3)
        ordered = await rig.declare("accounts", ordered=True)

        await rig.settle(consumer, third, action=Action.RELEASE)
        await rig.settle(consumer, second, action=Action.RETRY, error="busy")

        in_order = rig.broker.consume([ordered])
        waiting = asyncio.ensure_future(in_order.fetch({ordered: 10}))
        await rig.now()
        assert not waiting.done(), "a key's second message was claimed while its first was in flight"
        await rig.settle(consumer, first)
        came = list(await rig.wait(waiting))
        await rig.settle(in_order, *came)
        came += await rig.until_done(in_order, ordered, 2)
        assert [(one.message.body, one.message.attempt) for one in came] == [(b"2", 2), (b"3", 1), (b"4", 1)]

    @needs(Capability.ORDERED, Capability.DELAY)
    async def test_what_was_claimed_before_its_queue_was_ordered_waits_for_its_turn_when_its_lease_has_ended(
        self, rig: Rig
    ) -> None:
        free = await rig.declare("accounts")
        consumer = rig.broker.consume([free])
        await rig.publish("accounts", b"1", b"2", key="a")
        first = await rig.one(consumer, free)
        short = await rig.declare("accounts", lease=rig.lease)
        await rig.one(rig.broker.consume([short]), short)  # whose worker dies
        ordered = await rig.declare("accounts", ordered=True)
        await rig.pause(2 * rig.lease)

        in_order = rig.broker.consume([ordered])
        waiting = asyncio.ensure_future(in_order.fetch({ordered: 10}))
        await rig.now()
        assert not waiting.done(), "a key's second message was claimed while its first was in flight"
        await rig.settle(consumer, first)
        assert [(one.message.body, one.message.attempt) for one in await rig.wait(waiting)] == [(b"2", 2)]

    @needs(Capability.ORDERED)
    async def test_each_keys_order_holds_among_many_consumers(self, rig: Rig) -> None:
        accounts = await rig.declare("accounts", ordered=True)
        keys, steps = 20, 10
        await rig.broker.publish(
            [rig.message("accounts", b"%d" % step, key=f"key-{key}") for step in range(steps) for key in range(keys)]
        )
        done: dict[str | None, list[int]] = {}
        finished = asyncio.Event()

        async def consume() -> None:
            consumer = rig.broker.consume([accounts])
            while True:
                for delivery in await consumer.fetch({accounts: 5}):
                    done.setdefault(delivery.message.key, []).append(int(delivery.message.body))
                    await rig.settle(consumer, delivery)
                if sum(map(len, done.values())) == keys * steps:
                    finished.set()

        tasks = [asyncio.create_task(consume()) for _ in range(5)]
        await rig.wait(finished.wait())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

        assert done == {f"key-{key}": list(range(steps)) for key in range(keys)}
