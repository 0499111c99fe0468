"""Joins where the store is apart from the broker: written, joined, published and settled in that order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import pytest

from carteiro.backends.memory import MemoryBackend, open_backend
from carteiro.engine.forwarder import STEP_BACK
from carteiro.engine.settler import Settler
from carteiro.errors import BrokerUnavailable
from carteiro.message import Action, Delivery, Join, Outcome, Outgoing, Subscription, Write
from carteiro.testing import VirtualClock

PARTS, WHOLE = Subscription("parts", "shop"), Subscription("whole", "shop")
AWAY = BrokerUnavailable("the store is away")


class Noted:
    """Stands before a store: notes what it is asked, and raises what it is told to, before or after it is done."""

    def __init__(self, inner: Any, steps: list[str]) -> None:
        self.inner = inner
        self.steps = steps
        self.before: list[Exception] = []
        self.after: list[Exception] = []

    async def write(self, writes: Sequence[Write]) -> Sequence[bool]:
        return await self._do("write", self.inner.write, writes)

    async def join(self, joins: Sequence[Join]) -> Sequence[bool]:
        return await self._do("join", self.inner.join, joins)

    async def _do(self, name: str, call: Any, asked: Sequence[Write] | Sequence[Join]) -> Sequence[bool]:
        self.steps.append(f"{name} {' '.join(one.key for one in asked)}")
        if self.before:
            raise self.before.pop(0)
        told: Sequence[bool] = await call(asked)
        if self.after:
            raise self.after.pop(0)
        return told

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Lane:
    """What the settler tells of each outcome, in place of a subscription's lane."""

    def __init__(self) -> None:
        self.doubtful: set[Delivery] = set()
        self.ended: list[Outcome] = []

    def lost(self, delivery: Delivery) -> bool:
        return False

    def settled(self, outcomes: Sequence[Outcome]) -> None:
        self.ended += outcomes


class Scene:
    """A settler between a broker and the store of another, under a clock of its own."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.backend: MemoryBackend = open_backend("memory://", clock=self.clock)
        self.steps: list[str] = []
        self.store = Noted(open_backend("memory://", clock=self.clock).store, self.steps)
        self.lane = Lane()

    async def begin(self) -> None:
        await self.backend.broker.declare([PARTS, WHOLE])
        self.consumer = self.backend.broker.consume([PARTS, WHOLE])
        settle = self.consumer.settle

        async def settling(outcomes: Sequence[Outcome]) -> Sequence[Delivery]:
            for one in outcomes:
                emits = " ".join(emit.id for emit in one.emits)
                self.steps.append(f"{one.action.value} {one.delivery.message.id} {emits}".strip())
                assert not one.joins
            return await settle(outcomes)

        async def forward(messages: Sequence[Outgoing]) -> None:
            self.steps.append(f"publish {' '.join(one.id for one in messages)}")
            await self.backend.broker.publish(messages)

        self.consumer.settle = settling  # type: ignore[method-assign]
        forwards: Mapping[str, Any] = {"default": forward}
        self.settler = Settler(self.consumer, "default", forwards, self.store, self.clock)
        self.settler.lanes = {PARTS: self.lane}  # type: ignore[dict-item]

    async def take(self, *ids: str) -> list[Delivery]:
        await self.backend.broker.publish([outgoing("parts", id) for id in ids])
        return list(await self.consumer.fetch({PARTS: len(ids)}))

    async def passing(self, until: Callable[[], object]) -> None:
        """Let time pass until this is so."""
        async with asyncio.timeout(30):
            while not until():
                self.clock.advance_to(self.clock.time() + 0.1)
                for _ in range(10):
                    await asyncio.sleep(0)

    async def value(self, key: str) -> bytes | None:
        entry = (await self.store.get([key])).get(key)
        return None if entry is None else entry.value

    async def arrived(self) -> list[str]:
        return sorted(one.id for one in await self.backend.broker.peek("whole", "shop", 100))


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    await scene.begin()
    yield scene
    await scene.backend.broker.close()


def outgoing(topic: str, id: str) -> Outgoing:
    return Outgoing(id, topic, b"", None, {}, "cause")


def joined(delivery: Delivery, size: int = 1, *, actor: str = "actor", emits: Sequence[str] = ()) -> Outcome:
    """Its record, its joining, what goes on in any case, and a mark for last."""
    id = delivery.message.id
    return Outcome(
        delivery,
        Action.ACK,
        emits=[outgoing("whole", one) for one in emits],
        writes=[Write(f"record:{id}", b"over", expect=0), Write(f"mark:{id}", b"done")],
        joins=[Join("set", id, actor, size, [outgoing("whole", f"full-by-{id}")], [Write("full", id.encode())])],
    )


async def test_a_record_is_written_before_its_joins_these_before_what_is_emitted_and_the_mark_last(scene: Scene):
    (delivery,) = await scene.take("a")

    scene.settler.add(joined(delivery, emits=["next"]))
    await scene.settler.drain()

    assert scene.steps == ["write record:a", "join set", "publish next full-by-a", "write mark:a", "ack a"]
    assert await scene.arrived() == ["full-by-a", "next"]
    assert await scene.value("full") == b"a"
    assert [one.delivery for one in scene.lane.ended] == [delivery]


async def test_only_the_one_that_fills_the_set_emits_what_is_for_it(scene: Scene):
    for delivery in await scene.take("a", "b", "c"):
        scene.settler.add(joined(delivery, size=3))
    await scene.settler.drain()

    assert await scene.arrived() == ["full-by-c"]
    assert scene.steps[:2] == ["write record:a record:b record:c", "join set set set"]
    assert await scene.value("full") == b"c"


async def test_without_writes_left_what_is_emitted_goes_with_the_settle(scene: Scene):
    (delivery,) = await scene.take("a")

    scene.settler.add(Outcome(delivery, Action.ACK, joins=joined(delivery).joins))
    await scene.settler.drain()

    assert scene.steps == ["join set", "ack a full-by-a"]


async def test_where_a_write_expects_in_vain_nothing_more_of_it_is_done_and_it_comes_again(scene: Scene):
    refused, good = await scene.take("a", "b")
    await scene.store.inner.write([Write("record:a", b"by another")])

    for delivery in (refused, good):
        scene.settler.add(joined(delivery, size=2, emits=[f"next-{delivery.message.id}"]))
    await scene.settler.drain()

    assert await scene.arrived() == ["next-b"]
    assert (await scene.value("record:a"), await scene.value("mark:a")) == (b"by another", None)
    assert "release a" in scene.steps
    scene.clock.advance_to(scene.clock.time() + STEP_BACK)
    (again,) = await scene.consumer.fetch({PARTS: 1})
    assert (again.message.id, again.message.attempt) == ("a", 1)
    assert await scene.store.inner.join(joined(again, size=2).joins) == [True], "the set was joined in vain"


async def test_while_the_store_is_away_it_waits_and_is_tried_again(scene: Scene):
    (delivery,) = await scene.take("a")
    scene.store.before += [AWAY, AWAY]

    scene.settler.add(joined(delivery))
    await scene.passing(lambda: scene.lane.ended)

    assert scene.steps[:4] == ["write record:a", "write record:a", "write record:a", "join set"]
    assert await scene.arrived() == ["full-by-a"]


async def test_a_join_whose_answer_was_lost_is_told_again(scene: Scene):
    (delivery,) = await scene.take("a")
    scene.store.after += [AWAY]

    scene.settler.add(Outcome(delivery, Action.ACK, joins=joined(delivery).joins))
    await scene.passing(lambda: scene.lane.ended)

    assert scene.steps == ["join set", "join set", "ack a full-by-a"]
    assert await scene.arrived() == ["full-by-a"]


async def test_a_record_whose_answer_was_lost_is_found_by_the_delivery_that_comes_then(scene: Scene):
    (delivery,) = await scene.take("a")
    scene.store.after += [AWAY]

    scene.settler.add(joined(delivery))
    await scene.passing(lambda: scene.lane.ended)

    assert scene.steps[-1] == "release a"
    assert await scene.value("record:a") == b"over"
    assert await scene.arrived() == []


async def test_a_stop_while_the_store_is_away_hands_the_message_back_as_if_it_had_not_been_tried(
    scene: Scene, caplog: pytest.LogCaptureFixture
):
    (delivery,) = await scene.take("a")
    scene.store.before += [AWAY] * 1_000
    scene.settler.add(joined(delivery))
    await scene.passing(lambda: len(scene.steps) > 1)

    scene.settler.give_up()
    await scene.passing(lambda: scene.lane.ended)

    assert "1 messages are handed back, handled but not settled, for the store" in caplog.text
    (message,) = await scene.backend.broker.peek("parts", "shop", 10)
    assert message.attempt == 1


async def test_a_killed_worker_does_nothing_more(scene: Scene):
    (delivery,) = await scene.take("a")
    scene.settler.kill()

    scene.settler.add(joined(delivery))
    await scene.settler.drain()

    assert (scene.steps, scene.lane.ended) == ([], [])


async def test_what_the_store_refuses_is_a_failed_attempt_of_that_message_alone(
    scene: Scene, caplog: pytest.LogCaptureFixture
):
    refused, good = await scene.take("a", "b")
    scene.store.before += [ValueError("too large for this store")] * 2  # for both, and for the first by itself

    for delivery in (refused, good):
        scene.settler.add(joined(delivery))
    await scene.settler.drain()

    assert "a cannot be settled: the store" in caplog.text
    assert await scene.arrived() == ["full-by-b"]
    (ended,) = [one for one in scene.lane.ended if one.delivery is refused]
    assert ended.failure is not None
    assert (ended.action, ended.failure.error) == (Action.RETRY, "ValueError: too large for this store")
