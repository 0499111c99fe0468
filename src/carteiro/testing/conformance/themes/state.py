"""The store: values, versions, compare-and-set and expiry; and what shares a commit with a settle."""

from __future__ import annotations

import asyncio

import pytest

from carteiro.message import Action, Write
from carteiro.ports.features import Capability
from carteiro.testing.conformance.rig import Rig, bodies, needs, outcome


@pytest.mark.asyncio
class StoreConformance:
    @needs(Capability.STORE)
    async def test_what_was_never_written_is_not_there(self, rig: Rig) -> None:
        assert dict(await rig.store.get([rig.topic("nothing")])) == {}
        assert dict(await rig.store.get([])) == {}

    @needs(Capability.STORE)
    async def test_a_value_is_kept_as_it_was_written(self, rig: Rig) -> None:
        values = {
            rig.topic("binary"): bytes(range(256)),
            rig.topic("empty"): b"",
            rig.topic("é 日本"): b"x" * 1_000_000,
        }

        assert list(await rig.store.write([Write(key, value) for key, value in values.items()])) == [True] * 3

        found = await rig.store.get([*values, rig.topic("missing")])
        assert {key: entry.value for key, entry in found.items()} == values

    @needs(Capability.STORE)
    async def test_versions_start_at_one_and_grow(self, rig: Rig) -> None:
        key = rig.topic("counter")
        versions: list[int] = []
        for value in (b"a", b"b", b"b"):
            await rig.store.write([Write(key, value)])
            versions.append((await rig.store.get([key]))[key].version)

        assert versions[0] == 1
        assert versions[0] < versions[1] < versions[2], "each write has a version of its own"

    @needs(Capability.STORE)
    async def test_a_write_may_expect_a_version(self, rig: Rig) -> None:
        key = rig.topic("balance")
        await rig.store.write([Write(key, b"1")])
        version = (await rig.store.get([key]))[key].version

        assert list(await rig.store.write([Write(key, b"2", expect=version)])) == [True]
        assert list(await rig.store.write([Write(key, b"3", expect=version)])) == [False]
        assert (await rig.store.get([key]))[key].value == b"2"

    @needs(Capability.STORE)
    async def test_a_write_may_expect_nothing(self, rig: Rig) -> None:
        key = rig.topic("lock")

        assert list(await rig.store.write([Write(key, b"mine", expect=0)])) == [True]
        assert list(await rig.store.write([Write(key, b"theirs", expect=0)])) == [False]
        assert list(await rig.store.write([Write(key, None)])) == [True]
        assert list(await rig.store.write([Write(key, b"theirs", expect=0)])) == [True]

    @needs(Capability.STORE)
    async def test_a_deletion_may_expect_a_version_too(self, rig: Rig) -> None:
        key = rig.topic("lock")
        await rig.store.write([Write(key, b"1"), Write(key, b"2")])
        version = (await rig.store.get([key]))[key].version

        assert list(await rig.store.write([Write(key, None, expect=version - 1)])) == [False]
        assert list(await rig.store.write([Write(key, None, expect=version)])) == [True]
        assert dict(await rig.store.get([key])) == {}

    @needs(Capability.STORE)
    async def test_the_writes_of_one_call_stand_each_on_its_own(self, rig: Rig) -> None:
        one, two, three = rig.topic("one"), rig.topic("two"), rig.topic("three")
        await rig.store.write([Write(two, b"there")])

        done = await rig.store.write([Write(one, b"1", expect=0), Write(two, b"2", expect=0), Write(three, b"3")])

        assert list(done) == [True, False, True]
        assert {key: entry.value for key, entry in (await rig.store.get([one, two, three])).items()} == {
            one: b"1",
            two: b"there",
            three: b"3",
        }

    @needs(Capability.STORE)
    async def test_a_scan_finds_a_prefix_in_the_order_of_keys(self, rig: Rig) -> None:
        names = ["run_1/b", "run_1/a", "run_1", "run_10/a", "run%1/a", "runx1/a", "run_2/a"]
        await rig.store.write([Write(rig.topic(name), name.encode()) for name in names])

        found = await rig.store.scan(rig.topic("run_1"))

        assert [entry.value for entry in found.values()] == [b"run_1", b"run_1/a", b"run_1/b", b"run_10/a"]
        assert list(found) == sorted(found)

    @needs(Capability.STORE, Capability.DELAY)
    async def test_what_has_expired_is_not_there(self, rig: Rig) -> None:
        short, long = rig.topic("life.short"), rig.topic("life.long")
        await rig.store.write([Write(short, b"1", ttl=rig.delay), Write(long, b"2", ttl=3_600.0)])
        await rig.pause(2 * rig.delay)

        assert list(await rig.store.get([short, long])) == [long]
        assert list(await rig.store.scan(rig.topic("life"))) == [long]
        assert list(await rig.store.write([Write(short, b"3", expect=0)])) == [True]

    @needs(Capability.STORE, Capability.DELAY)
    async def test_a_later_write_replaces_the_expiry(self, rig: Rig) -> None:
        key = rig.topic("session")
        await rig.store.write([Write(key, b"1", ttl=rig.delay)])
        await rig.store.write([Write(key, b"2")])
        await rig.pause(2 * rig.delay)

        assert (await rig.store.get([key]))[key].value == b"2"

    @needs(Capability.STORE)
    async def test_of_many_who_compare_and_set_one_wins_each_time(self, rig: Rig) -> None:
        key, people, turns = rig.topic("counter"), 10, 5
        await rig.store.write([Write(key, b"0")])

        async def count() -> None:
            for _ in range(turns):
                while True:
                    entry = (await rig.store.get([key]))[key]
                    value = b"%d" % (int(entry.value) + 1)
                    if (await rig.store.write([Write(key, value, expect=entry.version)]))[0]:
                        break

        await rig.wait(asyncio.gather(*[count() for _ in range(people)]))

        assert (await rig.store.get([key]))[key].value == b"%d" % (people * turns)

    @needs(Capability.STORE, Capability.ATOMIC)
    async def test_writes_are_made_with_the_settle(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        consumer = rig.broker.consume([orders])
        old, new = rig.topic("old"), rig.topic("new")
        await rig.store.write([Write(old, b"1")])
        await rig.publish("orders", b"order")
        delivery = await rig.one(consumer, orders)

        assert not await consumer.settle([outcome(delivery, writes=[Write(new, b"done"), Write(old, None)])])

        assert {key: entry.value for key, entry in (await rig.store.get([old, new])).items()} == {new: b"done"}

    @needs(Capability.STORE, Capability.ATOMIC)
    async def test_an_outcome_whose_write_expects_in_vain_is_not_applied(self, rig: Rig) -> None:
        orders, stock = await rig.declare("orders"), await rig.declare("stock")
        consumer = rig.broker.consume([orders, stock])
        taken, free = rig.topic("taken"), rig.topic("free")
        await rig.store.write([Write(taken, b"1")])
        await rig.publish("orders", b"1", b"2")
        refused, accepted = await rig.take(consumer, orders, 2)

        lost = await consumer.settle(
            [
                outcome(
                    refused,
                    writes=[Write(free, b"2"), Write(taken, b"2", expect=0)],
                    emits=[rig.message("stock", b"never")],
                ),
                outcome(accepted, emits=[rig.message("stock", b"reserved")]),
            ]
        )

        assert list(lost) == [refused]
        assert {key: entry.value for key, entry in (await rig.store.get([taken, free])).items()} == {taken: b"1"}
        assert bodies(await rig.until(consumer, stock, "stock")) == [b"reserved"]
        await rig.settle(consumer, refused, action=Action.ACK)
