"""Many at once: consumers that share, fetches that are cancelled, consumers and brokers that close."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress

import pytest

from carteiro.errors import CarteiroError
from carteiro.testing.conformance.rig import Rig, bodies


@pytest.mark.asyncio
class ConcurrencyConformance:
    async def test_fifty_consumers_handle_five_thousand_messages_once_each(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        count = 5_000
        done: Counter[bytes] = Counter()
        finished = asyncio.Event()

        async def consume() -> None:
            consumer = rig.broker.consume([orders])
            while True:
                deliveries = await consumer.fetch({orders: 20})
                await rig.settle(consumer, *deliveries)
                done.update(bodies(deliveries))
                if done.total() >= count:
                    finished.set()

        tasks = [asyncio.create_task(consume()) for _ in range(50)]
        for start in range(0, count, 500):
            await rig.publish("orders", *(b"%d" % number for number in range(start, start + 500)))
        await rig.wait(finished.wait())
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, asyncio.CancelledError), f"a consumer failed: {result!r}"

        assert done == Counter(b"%d" % number for number in range(count))

    async def test_concurrent_publishes_all_arrive(self, rig: Rig) -> None:
        orders = await rig.declare("orders")

        await rig.wait(asyncio.gather(*[rig.publish("orders", b"%d" % number) for number in range(200)]))

        taken = bodies(await rig.take(rig.broker.consume([orders]), orders, 200))
        assert sorted(taken) == sorted(b"%d" % number for number in range(200))

    async def test_a_cancelled_fetch_loses_nothing(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        consumer = rig.broker.consume([orders])
        sent = [b"%d" % number for number in range(100)]
        taken: list[bytes] = []
        for number, body in enumerate(sent):
            fetch = asyncio.ensure_future(consumer.fetch({orders: 2}))
            publish = asyncio.ensure_future(rig.publish("orders", body))
            for _ in range(number % 7):  # the cancellation meets the fetch at another step each time
                await _let_others_run()
            fetch.cancel()
            with suppress(asyncio.CancelledError):
                taken += bodies(await fetch)
            await publish

        taken += bodies(await rig.take(consumer, orders, len(sent) - len(taken)))

        assert sorted(taken) == sorted(sent)

    async def test_a_cancelled_fetch_leaves_the_next_its_attempts(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        consumer = rig.broker.consume([orders])
        for _ in range(20):
            fetch = asyncio.ensure_future(consumer.fetch({orders: 1}))
            await _let_others_run()
            fetch.cancel()
            await asyncio.gather(fetch, return_exceptions=True)
        await rig.publish("orders", b"order")

        assert (await rig.one(consumer, orders)).message.attempt == 1

    async def test_a_closed_consumer_is_closed_again_without_harm(self, rig: Rig) -> None:
        consumer = rig.broker.consume([await rig.declare("orders")])

        await asyncio.gather(consumer.close(), consumer.close())
        await consumer.close()

    async def test_closing_ends_a_waiting_fetch(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        consumer = rig.broker.consume([orders])
        fetch = asyncio.ensure_future(consumer.fetch({orders: 1}))
        await rig.now()  # the fetch had time to begin its wait
        await consumer.close()

        with suppress(CarteiroError):
            assert not await rig.wait(fetch), "a closed consumer claimed something"

    async def test_consumers_that_close_leave_the_others_at_work(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        closing = [rig.broker.consume([orders]) for _ in range(10)]
        staying = rig.broker.consume([orders])
        fetches = [asyncio.ensure_future(consumer.fetch({orders: 1})) for consumer in closing]
        await rig.now()
        await asyncio.gather(*[consumer.close() for consumer in closing])
        await rig.wait(asyncio.gather(*fetches, return_exceptions=True))
        await rig.publish("orders", b"1", b"2")

        assert bodies(await rig.take(staying, orders, 2)) == [b"1", b"2"]

    async def test_what_a_closed_consumer_had_claimed_stays_claimed_until_its_lease_ends(self, rig: Rig) -> None:
        orders = await rig.declare("orders", lease=rig.lease)
        closing, staying = rig.broker.consume([orders]), rig.broker.consume([orders])
        await rig.publish("orders", b"claimed")
        await rig.one(closing, orders)
        await closing.close()

        delivery = await rig.one(staying, orders)

        assert (delivery.message.body, delivery.message.attempt, delivery.lost) == (b"claimed", 2, 1)

    async def test_one_handle_closes_while_another_works(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        other = (await rig.another()).broker
        consumer = rig.broker.consume([orders])
        await rig.publish("orders", *(b"%d" % number for number in range(100)))

        taken, _ = await rig.wait(asyncio.gather(rig.take(consumer, orders, 100), other.close()))
        await other.close()

        assert len(taken) == 100

    async def test_deliveries_may_be_settled_in_any_order_and_at_once(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        consumer = rig.broker.consume([orders])
        await rig.publish("orders", *(b"%d" % number for number in range(100)))
        deliveries = await rig.take(consumer, orders, 100)

        await rig.wait(asyncio.gather(*[rig.settle(consumer, one) for one in reversed(deliveries)]))

        assert await rig.until(consumer, orders, "orders") == []


async def _let_others_run() -> None:
    turn = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(turn.set_result, None)
    await turn
