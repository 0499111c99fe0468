"""Sets that are joined: who completes one, what comes of it once, and what shares a commit with a settle."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from carteiro.message import Join, Outgoing, Write
from carteiro.ports.features import Capability
from carteiro.testing.conformance.rig import Rig, bodies, needs, outcome


def join(
    rig: Rig,
    member: str,
    actor: str = "first",
    *,
    size: int = 2,
    key: str = "set",
    emits: Sequence[Outgoing] = (),
    writes: Sequence[Write] = (),
    ttl: float | None = None,
) -> Join:
    return Join(rig.topic(key), member, actor, size, emits, writes, ttl)


@pytest.mark.asyncio
class JoinsConformance:
    @needs(Capability.STORE)
    async def test_the_add_that_fills_a_set_completes_it(self, rig: Rig) -> None:
        told = [list(await rig.store.join([join(rig, member, size=3)])) for member in "abc"]

        assert told == [[False], [False], [True]]

    @needs(Capability.STORE)
    async def test_the_joins_of_one_call_are_made_in_their_order(self, rig: Rig) -> None:
        joins = [
            join(rig, "a"),
            join(rig, "x", key="other"),
            join(rig, "a"),
            join(rig, "b"),
            join(rig, "y", key="other"),
        ]

        assert list(await rig.store.join(joins)) == [False, False, False, True, True]
        assert list(await rig.store.join([])) == []

    @needs(Capability.STORE)
    async def test_a_member_that_is_there_adds_nothing_whoever_adds_it(self, rig: Rig) -> None:
        await rig.store.join([join(rig, "a")])

        assert list(await rig.store.join([join(rig, "a"), join(rig, "a", "second")])) == [False, False]
        assert list(await rig.store.join([join(rig, "b")])) == [True]

    @needs(Capability.STORE)
    async def test_only_the_one_who_completed_a_set_is_told_so_again(self, rig: Rig) -> None:
        await rig.store.join([join(rig, "a", "first"), join(rig, "b", "second")])

        again = [join(rig, "b", "second"), join(rig, "b", "third"), join(rig, "a", "first"), join(rig, "a", "second")]

        assert list(await rig.store.join(again)) == [True, False, False, False]
        assert list(await rig.store.join(again)) == [True, False, False, False]

    @needs(Capability.STORE)
    async def test_a_set_of_one_is_complete_with_the_first(self, rig: Rig) -> None:
        told = await rig.store.join([join(rig, "a", size=1), join(rig, "b", size=1), join(rig, "a", size=1)])

        assert list(told) == [True, False, True]

    @needs(Capability.STORE)
    async def test_a_full_set_takes_no_more(self, rig: Rig) -> None:
        await rig.store.join([join(rig, "a"), join(rig, "b")])

        assert list(await rig.store.join([join(rig, "c"), join(rig, "d"), join(rig, "b")])) == [False, False, True]

    @needs(Capability.STORE)
    async def test_what_a_join_writes_is_written_once_when_its_set_is_full(self, rig: Rig) -> None:
        key, gone = rig.topic("result"), rig.topic("partial")
        await rig.store.write([Write(gone, b"half")])
        first = join(rig, "a", writes=[Write(key, b"a's")])
        last = join(rig, "b", writes=[Write(key, b"b's"), Write(gone, None)])

        await rig.store.join([first])
        assert list(await rig.store.get([key, gone])) == [gone]
        await rig.store.join([last])
        await rig.store.join([last, first])

        found = await rig.store.get([key, gone])
        assert {one: (entry.value, entry.version) for one, entry in found.items()} == {key: (b"b's", 1)}

    @needs(Capability.STORE)
    async def test_a_set_is_no_entry_of_the_store(self, rig: Rig) -> None:
        key = rig.topic("set")
        await rig.store.join([join(rig, "a")])

        assert dict(await rig.store.get([key])) == {}
        assert dict(await rig.store.scan(key)) == {}
        await rig.store.write([Write(key, b"entry", expect=0), Write(key, None)])
        assert list(await rig.store.join([join(rig, "b")])) == [True]

    @needs(Capability.STORE, Capability.DELAY)
    async def test_a_set_is_forgotten_when_its_time_has_passed_since_the_last_add(self, rig: Rig) -> None:
        await rig.store.join([join(rig, "a", ttl=rig.delay, key="short"), join(rig, "a", ttl=rig.delay, size=3)])
        await rig.store.join([join(rig, "b", ttl=3_600.0, size=3), join(rig, "a", ttl=rig.delay, size=1, key="full")])
        await rig.pause(2 * rig.delay)

        assert list(await rig.store.join([join(rig, "b", key="short"), join(rig, "a", key="short")])) == [False, True]
        assert list(await rig.store.join([join(rig, "b", "second", size=1, key="full")])) == [True]
        assert list(await rig.store.join([join(rig, "a", size=3), join(rig, "c", size=3)])) == [False, True]

    @needs(Capability.STORE)
    async def test_of_many_who_fill_a_set_at_once_one_completes_it(self, rig: Rig) -> None:
        stores = [rig.store, *[(await rig.another()).broker.store for _ in range(3)]]
        names = [f"member-{number}" for number in range(200)]

        async def work(number: int) -> int:
            """Each adds all of them, in an order of its own."""
            store = stores[number]
            assert store is not None
            mine = random.Random(number).sample(names, len(names))
            told = [await store.join([join(rig, name, f"actor-{number}", size=200)]) for name in mine]
            return sum(one[0] for one in told)

        assert sum(await rig.wait(asyncio.gather(*[work(number) for number in range(len(stores))]))) == 1

    @needs(Capability.STORE)
    async def test_ten_thousand_members_complete_a_set_with_the_last(self, rig: Rig) -> None:
        joins = [join(rig, f"{number}", size=10_000, writes=[Write(rig.topic("n"), b"")]) for number in range(10_000)]
        told: list[bool] = []
        for start in range(0, 10_000, 1_000):
            told += await rig.wait(rig.store.join(joins[start : start + 1_000]))

        assert told == [False] * 9_999 + [True]
        assert list(await rig.wait(rig.store.join(joins[-1_000:]))) == [False] * 999 + [True]
        assert (await rig.store.get([rig.topic("n")]))[rig.topic("n")].version == 1

    # -- with a settle -------------------------------------------------------------------------------------------------

    @needs(Capability.STORE, Capability.ATOMIC)
    async def test_what_a_full_set_emits_and_writes_comes_with_the_settle(self, rig: Rig) -> None:
        parts, whole, audit = (
            await rig.declare("parts"),
            await rig.declare("whole"),
            await rig.declare("whole", "audit"),
        )
        consumer = rig.broker.consume([parts, whole, audit])
        await rig.publish("parts", b"a", b"b")
        result = rig.topic("result")

        first, last = await rig.take(consumer, parts, 2)
        for delivery in (first, last):
            body = delivery.message.body
            emits, writes = [rig.message("whole", b"full by " + body)], [Write(result, b"full by " + body)]
            joining = join(rig, body.decode(), emits=emits, writes=writes)
            own = rig.message("whole", b"from " + body)
            assert not await consumer.settle([outcome(delivery, emits=[own], joins=[joining])])

        full = b"full by " + last.message.body
        for subscription in (whole, audit):
            assert {*bodies(await rig.take(consumer, subscription, 3))} == {b"from a", b"from b", full}
        assert (await rig.store.get([result]))[result].value == full
        assert (await rig.store.get([result]))[result].version == 1

    @needs(Capability.STORE, Capability.ATOMIC)
    async def test_a_batch_that_fills_a_set_completes_it_once(self, rig: Rig) -> None:
        parts, whole = await rig.declare("parts"), await rig.declare("whole")
        consumers = [rig.broker.consume([parts, whole]), (await rig.another()).broker.consume([parts])]
        await rig.publish("parts", *(b"%d" % number for number in range(20)))
        taken = [await rig.take(consumer, parts, 10) for consumer in consumers]

        settled = [
            consumer.settle(
                [
                    outcome(one, joins=[join(rig, one.message.id, size=20, emits=[rig.message("whole", b"full")])])
                    for one in deliveries
                ]
            )
            for consumer, deliveries in zip(consumers, taken, strict=True)
        ]

        assert [list(lost) for lost in await rig.wait(asyncio.gather(*settled))] == [[], []]
        assert bodies(await rig.until(consumers[0], whole, "whole")) == [b"full"]

    @needs(Capability.STORE, Capability.ATOMIC)
    async def test_a_redelivery_of_who_completed_a_set_emits_again_and_no_others(self, rig: Rig) -> None:
        parts, whole = await rig.declare("parts"), await rig.declare("whole")
        consumer = rig.broker.consume([parts, whole])
        await rig.publish("parts", b"a", b"b", b"b again", b"b by another", b"a again")
        members = [("a", "first"), ("b", "first"), ("b", "first"), ("b", "another"), ("a", "first")]
        full = rig.message("whole", b"full")

        for delivery, (member, actor) in zip(await rig.take(consumer, parts, 5), members, strict=True):
            assert not await consumer.settle([outcome(delivery, joins=[join(rig, member, actor, emits=[full])])])

        assert [one.message.id for one in await rig.until(consumer, whole, "whole")] == [full.id, full.id]

    @needs(Capability.STORE, Capability.ATOMIC)
    async def test_an_outcome_that_is_not_applied_joins_nothing(self, rig: Rig) -> None:
        parts, whole = await rig.declare("parts"), await rig.declare("whole")
        consumer = rig.broker.consume([parts, whole])
        taken = rig.topic("taken")
        await rig.store.write([Write(taken, b"1")])
        await rig.publish("parts", b"refused", b"settled before", b"last")
        refused, settled, last = await rig.take(consumer, parts, 3)
        await rig.settle(consumer, settled)
        full = rig.message("whole", b"full")

        lost = await consumer.settle(
            [
                outcome(refused, writes=[Write(taken, b"2", expect=0)], joins=[join(rig, "refused", emits=[full])]),
                outcome(settled, joins=[join(rig, "settled before", emits=[full])]),
                outcome(last, joins=[join(rig, "last", emits=[full])]),
            ]
        )

        assert {one.message.body for one in lost} == {b"refused", b"settled before"}
        assert await rig.until(consumer, whole, "whole") == []
        assert list(await rig.store.join([join(rig, "another")])) == [True]
        await rig.settle(consumer, refused)

    @needs(Capability.STORE, Capability.ATOMIC, Capability.DELAY)
    async def test_what_a_full_set_emits_may_be_delayed(self, rig: Rig) -> None:
        parts, whole = await rig.declare("parts"), await rig.declare("whole")
        consumer = rig.broker.consume([parts, whole])
        await rig.publish("parts", b"a")
        late = rig.message("whole", b"late", delay=rig.delay)

        await consumer.settle([outcome(await rig.one(consumer, parts), joins=[join(rig, "a", size=1, emits=[late])])])
        published = (await rig.one(consumer, whole)).message.published

        assert await rig.now() >= published + rig.delay
