"""Several processes on one broker, some of which are killed or frozen."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from carteiro.message import Subscription
from carteiro.ports.features import Capability
from carteiro.testing.conformance.rig import LONG, Rig, bodies, needs
from carteiro.topics import dlq_name


class ChildProcess:
    """A running `carteiro.testing.conformance.child`."""

    def __init__(self, rig: Rig, process: asyncio.subprocess.Process) -> None:
        self._rig = rig
        self._process = process

    async def tell(self, command: str, *arguments: object) -> None:
        """Give a command without waiting for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([command, *arguments]).encode() + b"\n")
        await self._process.stdin.drain()

    async def ask(self, command: str, *arguments: object) -> Any:
        """Give a command and wait for its answer."""
        await self.tell(command, *arguments)
        assert self._process.stdout is not None
        line = await self._rig.wait(self._process.stdout.readline())
        assert line, f"the child ended in the middle of `{command}`: its error is above"
        return json.loads(line)

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def child(rig: Rig) -> AsyncIterator[ChildProcess]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "carteiro.testing.conformance.child",
        rig.url,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    running = ChildProcess(rig, process)
    try:
        yield running
    finally:
        await running.kill()


@pytest.mark.asyncio
class ProcessesConformance:
    @needs(Capability.MULTIPROCESS)
    async def test_a_fetch_wakes_for_what_another_process_publishes(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        fetch = asyncio.ensure_future(rig.broker.consume([orders]).fetch({orders: 1}))
        async with child(rig) as publisher:
            await publisher.ask("publish", orders.topic, ["from afar"])

            assert bodies(await rig.wait(fetch)) == [b"from afar"]

    @needs(Capability.MULTIPROCESS)
    async def test_what_a_process_published_survives_it(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        async with child(rig) as publisher:
            await publisher.ask("publish", orders.topic, ["1", "2", "3"])
            await publisher.kill()

        assert bodies(await rig.take(rig.broker.consume([orders]), orders, 3)) == [b"1", b"2", b"3"]

    @needs(Capability.MULTIPROCESS)
    async def test_what_a_killed_process_had_claimed_comes_again(self, rig: Rig) -> None:
        orders = await rig.declare("orders", lease=rig.lease)
        await rig.publish("orders", b"1", b"2")
        async with child(rig) as worker:
            assert await worker.ask("claim", orders.topic, orders.group, rig.lease, 2) == [["1", 1], ["2", 1]]
            await worker.kill()
        longer = await rig.lease_longer(orders)

        again = await rig.take(rig.broker.consume([longer]), longer, 2)

        assert [(one.message.body, one.message.attempt, one.lost) for one in again] == [(b"1", 2, 1), (b"2", 2, 1)]

    @needs(Capability.MULTIPROCESS)
    async def test_a_process_frozen_past_its_lease_settles_nothing(self, rig: Rig) -> None:
        orders = await rig.declare("orders", lease=rig.lease)
        await rig.publish("orders", b"order")
        async with child(rig) as frozen:
            assert await frozen.ask("claim", orders.topic, orders.group, rig.lease, 1) == [["order", 1]]
            frozen.send(signal.SIGSTOP)
            longer = await rig.lease_longer(orders)
            consumer = rig.broker.consume([longer])
            delivery = await rig.one(consumer, longer)
            frozen.send(signal.SIGCONT)

            assert await frozen.ask("settle") == ["order"], "it settled a message that another has claimed since"

        assert (delivery.message.attempt, delivery.lost) == (2, 1)
        await rig.settle(consumer, delivery)
        assert await rig.until(consumer, orders, "orders") == []

    @needs(Capability.MULTIPROCESS)
    async def test_processes_share_the_messages_of_a_group(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        await rig.publish("orders", *(b"%d" % number for number in range(30)))
        async with child(rig) as first, child(rig) as second:
            claimed = await asyncio.gather(
                *[one.ask("claim", orders.topic, orders.group, LONG, 15) for one in (first, second)]
            )

            assert sorted(int(body) for one in claimed for body, _ in one) == list(range(30))
            assert await first.ask("settle") == await second.ask("settle") == []

    @needs(Capability.MULTIPROCESS, Capability.DEAD_LETTERS, Capability.INSPECT)
    async def test_published_is_done_and_dead_and_waiting_while_workers_are_killed(self, rig: Rig) -> None:
        lease = 2 * rig.lease
        orders, done = await rig.declare("orders", lease=lease), await rig.declare("done")
        live = [f"order-{number}" for number in range(400)]
        doomed = [f"dead-{number}" for number in range(20)]
        collector = rig.broker.consume([done])

        async with child(rig) as publisher, child(rig) as other_publisher, child(rig) as survivor:
            await survivor.tell("work", orders.topic, orders.group, lease, done.topic)
            finished: list[bytes] = []
            for round in range(4):
                async with child(rig) as victim:
                    await victim.tell("work", orders.topic, orders.group, lease, done.topic)
                    await asyncio.gather(
                        publisher.ask("publish", orders.topic, live[round * 100 : round * 100 + 50]),
                        other_publisher.ask(
                            "publish",
                            orders.topic,
                            [*live[round * 100 + 50 : round * 100 + 100], *doomed[round * 5 : round * 5 + 5]],
                        ),
                    )
                    finished += await _collect(rig, collector, done, 20)
                    await victim.kill()
            while len({*finished}) < len(live):
                finished += await _collect(rig, collector, done, 1)
            await rig.wait(_until_all_done(rig, orders, dead=len(doomed)))

        assert {*finished} == {body.encode() for body in live}
        if rig.broker.features[Capability.ATOMIC].level == "native":
            finished += bodies(await rig.until(collector, done, "done"))
            assert len(finished) == len(live), "an emitted message without its own ack"
        letters = await rig.inspector.dead_letters(dlq_name(orders.topic))
        assert sorted(one.message.body for one in letters) == sorted(body.encode() for body in doomed)


async def _collect(rig: Rig, collector: Any, done: Subscription, count: int) -> list[bytes]:
    """So many, or more, of what the workers report."""
    collected: list[bytes] = []
    while len(collected) < count:
        deliveries = await rig.wait(collector.fetch({done: 100}))
        await rig.settle(collector, *deliveries)
        collected += bodies(deliveries)
    return collected


async def _until_all_done(rig: Rig, subscription: Subscription, *, dead: int) -> None:
    """Until so many are dead and nothing of the group waits or is in flight, as far as the broker tells."""
    while True:
        status = await rig.status(subscription)
        left = (status.waiting, status.delayed, status.retrying, status.in_flight)
        if not any(left) and status.dead == dead:
            return
        await rig.now()
