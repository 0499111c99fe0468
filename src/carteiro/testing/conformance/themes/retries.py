"""Retries, delays and dead letters: what waits, waits in the broker."""

from __future__ import annotations

import pytest

from carteiro.message import (
    DEAD_ATTEMPTS,
    DEAD_GROUP,
    DEAD_REASON,
    DEAD_TOPIC,
    Action,
    Delivery,
    Subscription,
)
from carteiro.ports.broker import Consumer
from carteiro.ports.features import Capability
from carteiro.testing.conformance.rig import Rig, bodies, needs, outcome
from carteiro.topics import dlq_name

SLACK = 0.002
"""Seconds that a broker may round its times by."""


@pytest.mark.asyncio
class DelayConformance:
    @needs(Capability.DELAY)
    async def test_a_delayed_message_comes_after_one_that_was_published_later(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        consumer = rig.broker.consume([orders])
        await rig.broker.publish([rig.message("orders", b"later", delay=rig.delay), rig.message("orders", b"now")])

        assert bodies(await rig.take(consumer, orders, 2)) == [b"now", b"later"]

    @needs(Capability.DELAY)
    async def test_a_delayed_message_is_never_early(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        consumer = rig.broker.consume([orders])
        await rig.publish("orders", b"later", delay=rig.delay)
        delivery = await rig.one(consumer, orders)

        assert await rig.now() - delivery.message.published >= rig.delay - SLACK

    @needs(Capability.DELAY)
    async def test_delayed_messages_come_by_their_time(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        await rig.broker.publish([rig.message("orders", b"%d" % steps, delay=steps * rig.delay) for steps in (3, 1, 2)])

        assert bodies(await rig.take(rig.broker.consume([orders]), orders, 3)) == [b"1", b"2", b"3"]

    @needs(Capability.DELAY)
    async def test_a_delay_far_ahead_holds_up_nothing(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        delays = {b"in a year": 365 * 86_400, b"soon": rig.delay, b"now": 0}
        await rig.broker.publish([rig.message("orders", body, delay=delay) for body, delay in delays.items()])

        assert bodies(await rig.take(rig.broker.consume([orders]), orders, 2)) == [b"now", b"soon"]


@pytest.mark.asyncio
class RetriesConformance:
    @needs(Capability.RETRY)
    async def test_a_retry_is_the_next_attempt_and_knows_its_failures(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        consumer = rig.broker.consume([orders])
        await rig.publish("orders", b"order")

        for attempt, error in ((1, "payment is down"), (2, "still: Zoë's bank 🏦")):
            delivery = await rig.one(consumer, orders)
            assert delivery.message.attempt == attempt
            await rig.settle(consumer, delivery, action=Action.RETRY, error=error)

        delivery = await rig.one(consumer, orders)
        assert delivery.message.attempt == 3
        assert [(one.attempt, one.error) for one in delivery.history] == [
            (1, "payment is down"),
            (2, "still: Zoë's bank 🏦"),
        ]
        assert delivery.lost == 0

    @needs(Capability.RETRY)
    async def test_a_retry_is_never_early_and_holds_up_nothing(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        consumer = rig.broker.consume([orders])
        await rig.publish("orders", b"failed", b"next")
        delivery = await rig.one(consumer, orders)
        before = await rig.now()
        await rig.settle(consumer, delivery, action=Action.RETRY, delay=rig.delay, error="busy")

        assert bodies([await rig.one(consumer, orders)]) == [b"next"]
        assert bodies([await rig.one(consumer, orders)]) == [b"failed"]
        assert await rig.now() - before >= rig.delay - SLACK

    @needs(Capability.RETRY)
    async def test_retries_come_by_their_time(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        consumer = rig.broker.consume([orders])
        await rig.publish("orders", b"3", b"1", b"2")
        deliveries = await rig.take(consumer, orders, 3)
        assert not await consumer.settle(
            [outcome(one, Action.RETRY, delay=int(one.message.body) * rig.delay, error="busy") for one in deliveries]
        )

        assert bodies(await rig.take(consumer, orders, 3)) == [b"1", b"2", b"3"]

    @needs(Capability.RETRY)
    async def test_a_release_may_wait_too(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        consumer = rig.broker.consume([orders])
        await rig.publish("orders", b"released", b"next")
        delivery = await rig.one(consumer, orders)
        await rig.settle(consumer, delivery, action=Action.RELEASE, delay=rig.delay)

        deliveries = await rig.take(consumer, orders, 2)

        assert [(one.message.body, one.message.attempt) for one in deliveries] == [(b"next", 1), (b"released", 1)]

    @needs(Capability.RETRY, Capability.GROUPS)
    async def test_a_retry_concerns_its_own_group_only(self, rig: Rig) -> None:
        stock, payment = await rig.declare("orders", "stock"), await rig.declare("orders", "payment")
        consumer = rig.broker.consume([stock, payment])
        await rig.publish("orders", b"order")
        await rig.settle(consumer, await rig.one(consumer, payment), action=Action.RETRY, error="busy")

        assert bodies(await rig.until(consumer, stock, "orders")) == [b"order"]
        assert (await rig.one(consumer, payment)).message.attempt == 2

    @needs(Capability.RETRY)
    async def test_failures_and_lost_attempts_are_told_apart(self, rig: Rig) -> None:
        orders = await rig.declare("orders", lease=rig.lease)
        consumer = rig.broker.consume([orders])
        await rig.publish("orders", b"order")
        await rig.settle(consumer, await rig.one(consumer, orders), action=Action.RETRY, error="busy")
        await rig.one(consumer, orders)  # whose worker dies

        delivery = await rig.one(consumer, orders)

        assert delivery.message.attempt == 3
        assert [one.error for one in delivery.history] == ["busy"]
        assert delivery.lost == 1


@pytest.mark.asyncio
class DeadLettersConformance:
    @needs(Capability.DEAD_LETTERS)
    async def test_a_dead_message_never_comes_again(self, rig: Rig) -> None:
        orders, consumer, _ = await _bury(rig)

        assert await rig.until(consumer, orders, "orders") == []

    @needs(Capability.DEAD_LETTERS)
    async def test_dead_letters_are_a_topic_that_one_can_subscribe_to(self, rig: Rig) -> None:
        queue = dlq_name(rig.topic("orders"))
        mourner = Subscription(queue, "mourner", lease=60.0)
        await rig.broker.declare([mourner])
        _, _, dead = await _bury(rig)

        consumer = rig.broker.consume([mourner])
        delivery = await rig.one(consumer, mourner)
        await rig.settle(consumer, delivery)

        message = delivery.message
        assert (message.topic, message.body, message.key) == (queue, b"order", "seven")
        assert message.correlation_id == dead.message.correlation_id
        assert message.id != dead.message.id, "it is a new message, of its own id"
        assert message.attempt == 1
        assert dict(message.headers) == {
            "x-tenant": "br",
            DEAD_REASON: "PaymentError: no card — Zoë",
            DEAD_TOPIC: rig.topic("orders"),
            DEAD_GROUP: "group",
            DEAD_ATTEMPTS: "1",
        }

    @needs(Capability.DEAD_LETTERS, Capability.GROUPS, Capability.PATTERNS)
    async def test_a_listener_on_either_name_of_a_queue_hears_of_each_death_once(self, rig: Rig) -> None:
        short, long = dlq_name(rig.topic("orders")), dlq_name(rig.topic("orders"), "stock")
        listeners = [Subscription(short, "short"), Subscription(long, "long"), Subscription(f"{short}.#", "both")]
        await rig.broker.declare(listeners)
        stock = await rig.declare("orders", "stock")
        consumer = rig.broker.consume([stock, *listeners])

        async def deaths() -> list[list[str]]:
            await rig.publish("orders", b"order")
            await rig.settle(consumer, await rig.one(consumer, stock), action=Action.DEAD, error="no")
            heard = [await rig.wait(consumer.fetch({listener: 10})) for listener in listeners]
            await rig.settle(consumer, *(delivery for some in heard for delivery in some))
            return [[delivery.message.topic for delivery in some] for some in heard]

        assert await deaths() == [[short], [long], [short]], "one group: the queue has the short name"
        await rig.declare("orders", "payment")
        assert await deaths() == [[short], [long], [long]], "several groups: the queue has the long name"

    @needs(Capability.DEAD_LETTERS, Capability.INSPECT)
    async def test_a_dead_letter_tells_its_life(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        consumer = rig.broker.consume([orders])
        (sent,) = await rig.publish("orders", b"order")
        await rig.settle(consumer, await rig.one(consumer, orders), action=Action.RETRY, error="busy")
        await rig.settle(consumer, await rig.one(consumer, orders), action=Action.DEAD, error="out of attempts")

        (letter,) = await rig.inspector.dead_letters(dlq_name(orders.topic))

        assert (letter.queue, letter.topic, letter.group) == (dlq_name(orders.topic), orders.topic, "group")
        assert (letter.message.id, letter.message.body, letter.message.attempt) == (sent.id, b"order", 2)
        assert letter.reason == "out of attempts"
        assert [(one.attempt, one.error) for one in letter.history] == [(1, "busy"), (2, "out of attempts")]
        assert letter.at >= letter.message.published - SLACK
        assert (await rig.status(orders)).dead == 1

    @needs(Capability.DEAD_LETTERS, Capability.INSPECT, Capability.GROUPS)
    async def test_several_groups_have_a_queue_each(self, rig: Rig) -> None:
        stock, payment = await rig.declare("orders", "stock"), await rig.declare("orders", "payment")
        consumer = rig.broker.consume([stock, payment])
        await rig.publish("orders", b"order")
        for group in (stock, payment):
            await rig.settle(consumer, await rig.one(consumer, group), action=Action.DEAD, error="no")

        for name in ("stock", "payment"):
            (letter,) = await rig.inspector.dead_letters(dlq_name(stock.topic, name))
            assert letter.group == name
        assert not await rig.inspector.dead_letters(dlq_name(stock.topic))

    @needs(Capability.DEAD_LETTERS, Capability.INSPECT, Capability.BROADCAST)
    async def test_a_listener_that_comes_and_goes_does_not_change_a_queues_name(self, rig: Rig) -> None:
        await rig.declare("orders", "process-1", ephemeral=True)
        orders, _, _ = await _bury(rig)

        assert len(await rig.inspector.dead_letters(dlq_name(orders.topic))) == 1

    @needs(Capability.DEAD_LETTERS, Capability.INSPECT, Capability.GROUPS)
    async def test_a_replay_goes_to_the_group_that_failed_and_to_no_other(self, rig: Rig) -> None:
        stock, payment = await rig.declare("orders", "stock"), await rig.declare("orders", "payment")
        consumer = rig.broker.consume([stock, payment])
        (sent,) = await rig.publish("orders", b"order")
        await rig.settle(consumer, await rig.one(consumer, stock))
        await rig.settle(consumer, await rig.one(consumer, payment), action=Action.RETRY, error="busy")
        await rig.settle(consumer, await rig.one(consumer, payment), action=Action.DEAD, error="no")
        queue = dlq_name(payment.topic, "payment")

        assert await rig.inspector.replay(queue) == 1

        again = await rig.one(consumer, payment)
        assert (again.message.id, again.message.body, again.message.topic) == (sent.id, b"order", payment.topic)
        assert (again.message.attempt, again.history, again.lost) == (1, (), 0)
        assert await rig.until(consumer, stock, "orders") == []
        assert not await rig.inspector.dead_letters(queue), "what was replayed is no dead letter any more"

    @needs(Capability.DEAD_LETTERS, Capability.INSPECT)
    async def test_a_replay_may_mend_the_body(self, rig: Rig) -> None:
        orders, consumer, _ = await _bury(rig)
        queue = dlq_name(orders.topic)
        (letter,) = await rig.inspector.dead_letters(queue)

        assert await rig.inspector.replay(queue, ids=[letter.id], body=b"mended") == 1

        message = (await rig.one(consumer, orders)).message
        assert (message.body, message.key, dict(message.headers)) == (b"mended", "seven", {"x-tenant": "br"})

    @needs(Capability.DEAD_LETTERS, Capability.INSPECT)
    async def test_a_replayed_message_can_die_again(self, rig: Rig) -> None:
        orders, consumer, _ = await _bury(rig)
        queue = dlq_name(orders.topic)
        await rig.inspector.replay(queue)
        await rig.settle(consumer, await rig.one(consumer, orders), action=Action.DEAD, error="once more")

        (letter,) = await rig.inspector.dead_letters(queue)
        assert (letter.reason, letter.message.attempt) == ("once more", 1)

    @needs(Capability.DEAD_LETTERS, Capability.INSPECT)
    async def test_replay_and_purge_take_those_that_are_named(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        consumer = rig.broker.consume([orders])
        await rig.publish("orders", b"1", b"2", b"3", b"4")
        await rig.settle(consumer, *await rig.take(consumer, orders, 4), action=Action.DEAD, error="no")
        queue = dlq_name(orders.topic)
        letters = await rig.inspector.dead_letters(queue)
        assert [one.message.body for one in letters] == [b"1", b"2", b"3", b"4"]

        assert await rig.inspector.replay(queue, ids=[letters[1].id]) == 1
        assert await rig.inspector.purge_dead(queue, ids=[letters[2].id]) == 1
        assert await rig.inspector.replay(queue, ids=["no such id"]) == 0

        assert [one.message.body for one in await rig.inspector.dead_letters(queue)] == [b"1", b"4"]
        assert bodies(await rig.until(consumer, orders, "orders")) == [b"2"]


async def _bury(rig: Rig) -> tuple[Subscription, Consumer, Delivery]:
    """A message of `orders` that died at its first attempt."""
    orders = await rig.declare("orders")
    consumer = rig.broker.consume([orders])
    await rig.broker.publish([rig.message("orders", b"order", key="seven", headers={"x-tenant": "br"})])
    delivery = await rig.one(consumer, orders)
    await rig.settle(consumer, delivery, action=Action.DEAD, error="PaymentError: no card — Zoë")
    return orders, consumer, delivery
