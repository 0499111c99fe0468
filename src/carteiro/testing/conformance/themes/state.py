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

    @needs(Capability.STORE)
    async def test_a_scan_ends_before_a_key(self, rig: Rig) -> None:
        await remember(rig, "due:1", "due:2", "due:2/a", "due:3", "dud", "duf")

        async def before(name: str) -> list[str]:
            return await seen(rig, "due:", before=rig.topic(name))

        assert await before("due:2") == ["due:1"]
        assert await before("due:2/") == ["due:1", "due:2"]
        assert await before("due:") == await before("due") == await before("a") == []
        assert await before("due:9") == await before("duf/") == await before("z") == await seen(rig, "due:")

    @needs(Capability.STORE)
    async def test_a_scan_finds_no_more_than_its_limit(self, rig: Rig) -> None:
        await remember(rig, "due:3", "due:1", "due:4", "due:2")

        assert await seen(rig, "due:", limit=1) == ["due:1"]
        assert await seen(rig, "due:", limit=3) == ["due:1", "due:2", "due:3"]
        assert await seen(rig, "due:", limit=4) == await seen(rig, "due:", limit=500) == await seen(rig, "due:")
        assert await seen(rig, "due:", limit=0) == []
        assert await seen(rig, "due:", before=rig.topic("due:3"), limit=1) == ["due:1"]
        assert await seen(rig, "due:", before=rig.topic("due:3"), limit=9) == ["due:1", "due:2"]

    @needs(Capability.STORE)
    async def test_a_scan_finds_what_is_there_now(self, rig: Rig) -> None:
        await remember(rig, "due:1", "due:2", "due:3")
        await rig.store.write([Write(rig.topic("due:1"), None), Write(rig.topic("due:2"), b"again")])
        await remember(rig, "due:0", "due:4")

        assert await seen(rig, "due:", limit=3) == ["due:0", "due:2", "due:3"]

    @needs(Capability.STORE)
    async def test_the_order_of_a_scan_is_that_of_utf_8(self, rig: Rig) -> None:
        names = ["", " ", "-", "A", "_", "a", "z", "~", "\x7f", "é", "日本", "\ue000", "\uffee", "📦", "\U0010ffff"]
        await remember(rig, *(f"ção/{name}" for name in reversed(names)), "çãp", "ção")

        assert await seen(rig, "ção/") == [f"ção/{name}" for name in names]
        assert await seen(rig, "ção/", before=rig.topic("ção/é"), limit=20) == [f"ção/{name}" for name in names[:9]]
        assert await seen(rig, "ção/\U0010ffff") == ["ção/\U0010ffff"]

    @needs(Capability.STORE)
    async def test_the_prefix_of_a_scan_is_taken_literally(self, rig: Rig) -> None:
        marks = ["%", "_", "*", "?", "[a-z]", "\\", "'", '"', "{}", "(", "#", ".", "\n"]
        await remember(rig, *(f"{mark}/{name}" for mark in [*marks, "a", "abc"] for name in "ab"))

        for mark in marks:
            assert await seen(rig, mark) == [f"{mark}/a", f"{mark}/b"]

    @needs(Capability.STORE)
    async def test_a_scan_of_thousands_comes_whole_and_in_order(self, rig: Rig) -> None:
        names = [f"due:{number:04}" for number in range(3_000)]
        await rig.store.write([Write(rig.topic(name), b"", ttl=3_600.0) for name in reversed(names)])

        assert await seen(rig, "due:") == names
        assert await seen(rig, "due:", limit=2_500) == names[:2_500]
        assert await seen(rig, "due:", before=rig.topic("due:1000")) == names[:1_000]

    @needs(Capability.STORE, Capability.DELAY)
    async def test_what_has_expired_does_not_count_towards_the_limit_of_a_scan(self, rig: Rig) -> None:
        await remember(rig, *(f"due:{number}" for number in (1, 2, 3, 5, 7)), ttl=rig.delay)
        await remember(rig, *(f"due:{number}" for number in (4, 6, 8)), ttl=3_600.0)
        await rig.pause(2 * rig.delay)

        assert await seen(rig, "due:", limit=1) == ["due:4"]
        assert await seen(rig, "due:", limit=3) == await seen(rig, "due:") == ["due:4", "due:6", "due:8"]
        assert await seen(rig, "due:", before=rig.topic("due:8"), limit=3) == ["due:4", "due:6"]

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


async def remember(rig: Rig, *names: str, ttl: float | None = None) -> None:
    await rig.store.write([Write(rig.topic(name), name.encode(), ttl=ttl) for name in names])


async def seen(rig: Rig, prefix: str, *, before: str | None = None, limit: int | None = None) -> list[str]:
    """The names that a scan finds, in its order."""
    found = await rig.store.scan(rig.topic(prefix), before=before, limit=limit)
    return [key.removeprefix(rig.topic("")) for key in found]
