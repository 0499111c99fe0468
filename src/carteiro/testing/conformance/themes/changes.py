"""Waits for the store: who wakes them, with what, and what does not."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from carteiro.message import Join, Write
from carteiro.ports.features import Capability
from carteiro.ports.store import Entry
from carteiro.testing.conformance.rig import Rig, needs, outcome
from carteiro.testing.conformance.themes.processes import child

Changed = Mapping[str, Entry | None]


async def waiting(rig: Rig, versions: Mapping[str, int]) -> asyncio.Task[Changed]:
    """A wait that has gone as far as it goes by itself."""
    wait = asyncio.ensure_future(rig.store.changed(versions))
    await rig.now()
    assert not wait.done(), f"nothing has changed, and it says {wait.result()}"
    return wait


@pytest.mark.asyncio
class ChangesConformance:
    @needs(Capability.STORE)
    async def test_a_write_wakes_who_waits_for_its_key(self, rig: Rig) -> None:
        key = rig.topic("result")
        wait = await waiting(rig, {key: 0})

        await rig.store.write([Write(key, b"done")])

        assert dict(await rig.wait(wait)) == {key: Entry(b"done", 1)}

    @needs(Capability.STORE)
    async def test_a_write_by_another_connection_wakes(self, rig: Rig) -> None:
        key = rig.topic("result")
        other = (await rig.another()).broker.store
        assert other is not None
        await other.write([Write(key, b"running")])
        wait = await waiting(rig, {key: 1})

        await other.write([Write(key, b"done")])

        assert dict(await rig.wait(wait)) == {key: Entry(b"done", 2)}

    @needs(Capability.STORE, Capability.MULTIPROCESS)
    async def test_a_write_by_another_process_wakes(self, rig: Rig) -> None:
        key = rig.topic("result")
        async with child(rig) as worker:
            wait = await waiting(rig, {key: 0})
            assert await worker.ask("write", key, "done")

            assert dict(await rig.wait(wait)) == {key: Entry(b"done", 1)}

    @needs(Capability.STORE)
    async def test_what_is_another_already_is_told_at_once(self, rig: Rig) -> None:
        old, new, same = rig.topic("old"), rig.topic("new"), rig.topic("same")
        await rig.store.write([Write(old, b"1"), Write(old, b"2"), Write(new, b"1"), Write(same, b"1")])

        changed = await rig.wait(rig.store.changed({old: 1, new: 0, same: 1, rig.topic("gone"): 4}))

        assert dict(changed) == {old: Entry(b"2", 2), new: Entry(b"1", 1), rig.topic("gone"): None}

    @needs(Capability.STORE)
    async def test_a_deletion_wakes_with_nothing(self, rig: Rig) -> None:
        key = rig.topic("lock")
        await rig.store.write([Write(key, b"mine")])
        wait = await waiting(rig, {key: 1})

        await rig.store.write([Write(key, None)])

        assert dict(await rig.wait(wait)) == {key: None}

    @needs(Capability.STORE)
    async def test_what_changes_nothing_of_it_wakes_nobody(self, rig: Rig) -> None:
        key = rig.topic("result")
        await rig.store.write([Write(key, b"1")])
        wait = await waiting(rig, {key: 1, rig.topic("never"): 0})

        await rig.store.write([Write(rig.topic("other"), b"1"), Write(key, b"refused", expect=7)])
        await rig.store.write([Write(rig.topic("never"), None)])
        await rig.now()
        assert not wait.done()
        await rig.store.write([Write(key, b"2")])

        assert dict(await rig.wait(wait)) == {key: Entry(b"2", 2)}

    @needs(Capability.STORE, Capability.ATOMIC)
    async def test_what_a_settle_and_its_joins_write_wakes(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        consumer = rig.broker.consume([orders])
        await rig.publish("orders", b"order")
        delivery = await rig.one(consumer, orders)
        written, joined = rig.topic("written"), rig.topic("joined")
        waits = [await waiting(rig, {key: 0}) for key in (written, joined)]

        joins = [Join(rig.topic("set"), "member", "actor", 1, writes=[Write(joined, b"full")])]
        assert not await consumer.settle([outcome(delivery, writes=[Write(written, b"done")], joins=joins)])

        told = [dict(await rig.wait(wait)) for wait in waits]
        assert told == [{written: Entry(b"done", 1)}, {joined: Entry(b"full", 1)}]

    @needs(Capability.STORE)
    async def test_many_wait_and_each_is_told_of_its_own(self, rig: Rig) -> None:
        keys = [rig.topic(f"result-{number}") for number in range(100)]
        shared = rig.topic("shared")
        waits = [await waiting(rig, {keys[0]: 0, shared: 0})]
        waits += [asyncio.ensure_future(rig.store.changed({key: 0, shared: 0})) for key in keys[1:]]

        for key in keys[:50]:
            await rig.store.write([Write(key, key.encode())])
        first = await rig.wait(asyncio.gather(*waits[:50]))
        assert not any(wait.done() for wait in waits[50:])
        await rig.store.write([Write(shared, b"all")])
        rest = await rig.wait(asyncio.gather(*waits[50:]))

        assert [dict(one) for one in first] == [{key: Entry(key.encode(), 1)} for key in keys[:50]]
        assert [dict(one) for one in rest] == [{shared: Entry(b"all", 1)}] * 50

    @needs(Capability.STORE)
    async def test_a_wait_that_was_cancelled_is_in_nobodys_way(self, rig: Rig) -> None:
        key = rig.topic("result")
        waits = [await waiting(rig, {key: 0}) for _ in range(3)]
        for wait in waits[:2]:
            wait.cancel()
        await asyncio.gather(*waits[:2], return_exceptions=True)

        await rig.store.write([Write(key, b"done")])

        assert dict(await rig.wait(waits[2])) == {key: Entry(b"done", 1)}
        assert dict(await rig.wait(rig.store.changed({key: 0}))) == {key: Entry(b"done", 1)}

    @needs(Capability.STORE)
    async def test_one_who_follows_a_key_misses_no_last_word(self, rig: Rig) -> None:
        key = rig.topic("progress")
        other = (await rig.another()).broker.store
        assert other is not None

        async def follow() -> bytes:
            version, value = 0, b""
            while value != b"last":
                entry = (await rig.store.changed({key: version}))[key]
                assert entry is not None
                assert entry.version > version
                version, value = entry.version, entry.value
            return value

        following = asyncio.ensure_future(follow())
        for number in range(50):
            await other.write([Write(key, b"%d" % number)])
        await other.write([Write(key, b"last")])

        assert await rig.wait(following) == b"last"
