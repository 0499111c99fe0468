"""Groups, fan-out, patterns and broadcast."""

from __future__ import annotations

import pytest

from carteiro.errors import BrokerError
from carteiro.message import Delivery
from carteiro.ports.features import Capability
from carteiro.testing.conformance.rig import Rig, bodies, needs


@pytest.mark.asyncio
class GroupsConformance:
    @needs(Capability.GROUPS)
    async def test_each_group_gets_each_message(self, rig: Rig) -> None:
        groups = [await rig.declare("orders", group) for group in ("stock", "payment", "invoice")]
        sent = [b"%d" % number for number in range(10)]
        await rig.publish("orders", *sent)

        for group in groups:
            assert bodies(await rig.until(rig.broker.consume([group]), group, "orders"))[:10] == sent

    @needs(Capability.GROUPS)
    async def test_what_one_group_acks_still_waits_for_the_others(self, rig: Rig) -> None:
        stock, payment = await rig.declare("orders", "stock"), await rig.declare("orders", "payment")
        consumer = rig.broker.consume([stock, payment])
        await rig.publish("orders", b"order")
        await rig.settle(consumer, await rig.one(consumer, stock))

        delivery = await rig.one(consumer, payment)

        assert (delivery.message.body, delivery.message.attempt) == (b"order", 1)

    @needs(Capability.GROUPS)
    async def test_one_call_ends_a_message_for_each_of_its_groups(self, rig: Rig) -> None:
        stock, payment = await rig.declare("orders", "stock"), await rig.declare("orders", "payment")
        consumer = rig.broker.consume([stock, payment])
        await rig.publish("orders", b"order")
        taken: list[Delivery] = []
        while len(taken) < 2:
            taken += await rig.wait(consumer.fetch({stock: 1, payment: 1}))

        await rig.settle(consumer, *taken)

        for group in (stock, payment):
            assert b"order" not in bodies(await rig.until(consumer, group, "orders"))

    async def test_the_consumers_of_a_group_share_its_messages(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        first, second = rig.broker.consume([orders]), rig.broker.consume([orders])
        sent = [b"%d" % number for number in range(10)]
        await rig.publish("orders", *sent)

        taken = [*await rig.take(first, orders, 5), *await rig.take(second, orders, 5)]

        assert sorted(bodies(taken)) == sent

    async def test_topics_do_not_mix(self, rig: Rig) -> None:
        placed, paid = await rig.declare("orders.placed"), await rig.declare("orders.paid")
        consumer = rig.broker.consume([placed, paid])
        await rig.publish("orders.placed", b"placed")
        await rig.publish("orders.paid", b"paid")

        assert bodies(await rig.until(consumer, placed, "orders.placed")) == [b"placed"]
        assert bodies(await rig.until(consumer, paid, "orders.paid")) == [b"paid"]

    @needs(Capability.PATTERNS)
    async def test_a_star_is_one_word(self, rig: Rig) -> None:
        pattern = await rig.declare("logs.*")
        for name in ("logs.error", "logs", "logs.app.error", "other.error", "logs.info"):
            await rig.publish(name, name.encode())

        before = await rig.until(rig.broker.consume([pattern]), pattern, "logs.last")

        assert bodies(before) == [b"logs.error", b"logs.info"]

    @needs(Capability.PATTERNS)
    async def test_a_hash_is_any_number_of_words(self, rig: Rig) -> None:
        pattern = await rig.declare("logs.#")
        for name in ("logs.error", "logs", "logsx", "logs.app.error", "other.error"):
            await rig.publish(name, name.encode())

        before = await rig.until(rig.broker.consume([pattern]), pattern, "logs.last")

        assert bodies(before) == [b"logs.error", b"logs", b"logs.app.error"]

    @needs(Capability.PATTERNS)
    async def test_a_pattern_may_have_wildcards_in_its_middle(self, rig: Rig) -> None:
        users = await rig.declare("user.*.br", "one word")
        anyone = await rig.declare("user.#.br", "any words")
        for name in ("user.ana.br", "user.ana.pt", "user.br", "user.ana.admin.br"):
            await rig.publish(name, name.encode())

        consumer = rig.broker.consume([users, anyone])

        assert bodies(await rig.take(consumer, users)) == [b"user.ana.br"]
        assert bodies(await rig.take(consumer, anyone, 3)) == [b"user.ana.br", b"user.br", b"user.ana.admin.br"]

    @needs(Capability.PATTERNS)
    async def test_what_means_something_elsewhere_is_only_a_character_in_a_topic(self, rig: Rig) -> None:
        for number, name in enumerate(("a_b", "a%b", "a?b", "a[b]", "a+b", "a$b", "日本", "a'b")):
            exact = await rig.declare(f"odd.{name}", f"group-{number}")
            await rig.publish(f"odd.{name}", name.encode())
            await rig.publish("odd.axb", b"another")
            assert bodies(await rig.until(rig.broker.consume([exact]), exact, f"odd.{name}")) == [name.encode()]

    @needs(Capability.PATTERNS)
    async def test_a_message_keeps_its_own_topic_under_a_pattern(self, rig: Rig) -> None:
        pattern = await rig.declare("logs.*")
        await rig.publish("logs.error", b"")

        delivery = await rig.one(rig.broker.consume([pattern]), pattern)

        assert delivery.subscription.topic == rig.topic("logs.*")
        assert delivery.message.topic == rig.topic("logs.error")

    @needs(Capability.BROADCAST)
    async def test_every_listener_of_a_broadcast_gets_its_own_copy(self, rig: Rig) -> None:
        listeners = [await rig.declare("news", f"process-{number}", ephemeral=True) for number in range(3)]
        consumers = [rig.broker.consume([listener]) for listener in listeners]
        await rig.publish("news", b"hello", b"again")

        for listener, consumer in zip(listeners, consumers, strict=True):
            assert bodies(await rig.take(consumer, listener, 2)) == [b"hello", b"again"]

    @needs(Capability.BROADCAST)
    async def test_an_ephemeral_group_goes_with_its_consumer(self, rig: Rig) -> None:
        listener = await rig.declare("news", "process-1", ephemeral=True)
        consumer = rig.broker.consume([listener])
        heard, unheard = rig.message("news"), rig.message("news")

        assert not await rig.broker.publish([heard])
        await consumer.close()

        assert [message.id for message in await rig.broker.publish([unheard])] == [unheard.id]

    async def test_a_durable_group_receives_while_nobody_consumes(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        consumer = rig.broker.consume([orders])
        await consumer.close()
        await rig.publish("orders", b"meanwhile")

        assert bodies(await rig.take(rig.broker.consume([orders]), orders)) == [b"meanwhile"]

    @needs(Capability.GROUPS, Capability.INSPECT)
    async def test_a_fetch_that_is_refused_for_one_group_has_claimed_nothing_for_another(self, rig: Rig) -> None:
        orders, refunds = await rig.declare("orders"), await rig.declare("refunds")
        consumer = rig.broker.consume([orders, refunds])
        await rig.publish("orders", b"1")
        await rig.inspector.remove_group(refunds.topic, refunds.group)

        for _ in range(2):
            with pytest.raises(BrokerError, match="refunds"):
                await rig.wait(consumer.fetch({orders: 1, refunds: 1}))

        delivery = await rig.one(consumer, orders)
        assert (delivery.message.body, delivery.message.attempt, delivery.lost) == (b"1", 1, 0)
