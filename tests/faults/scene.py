"""A broker, the workers on it, and the test's own eyes on both."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import pytest

from carteiro.backends.rabbitmq.names import Names
from carteiro.errors import BrokerUnavailable
from carteiro.message import Action, Delivery, Message, Outcome, Outgoing, Subscription, new_id
from carteiro.ports.broker import Backend, Broker, Consumer, Inspector
from carteiro.ports.clock import SYSTEM_CLOCK, Clock, SystemClock
from carteiro.ports.features import Capability
from carteiro.ports.registry import open_backend
from tests.faults.ledger import Account, account, life, status_of
from tests.faults.processes import Crew, WorkerProcess, crew
from tests.faults.worker import Options, Task
from tests.servers.process import ServerDown
from tests.servers.rabbitmq import RabbitServer

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds after which a test that waits is given up."""

LEASE = 1.0
WORK = Subscription("work", "shop", lease=LEASE)
DONE = Subscription("done", "audit", lease=PATIENCE)

LOOK = 0.05
"""Seconds between two looks at what nobody tells."""


@dataclass(frozen=True)
class Queues:
    """A virtual host of a RabbitMQ, whose own word it takes to know what is on its way: AMQP does not tell."""

    server: RabbitServer
    vhost: str
    prefix: str

    async def open(self, subscription: Subscription = WORK) -> int:
        """How many messages of it wait, are delayed or are claimed. The virtual host is this test's."""
        counts = await self._counts()
        delayed = sum(count for queue, count in counts.items() if queue.startswith("carteiro.delay"))
        return counts[self._name(subscription)] + delayed

    async def count(self, subscription: Subscription) -> int:
        return (await self._counts())[self._name(subscription)]

    async def _counts(self) -> dict[str, int]:
        while True:
            try:
                return await asyncio.to_thread(self.server.messages, self.vhost)
            except (ServerDown, ConnectionError):  # someone is harming the server
                await asyncio.sleep(LOOK)

    def _name(self, subscription: Subscription) -> str:
        return Names(self.prefix).queue(subscription)


class MovedClock(SystemClock):
    """The machine's clock, but for the time of day."""

    def __init__(self, offset: float = 0.0) -> None:
        self.offset = offset

    def time(self) -> float:
        return super().time() + self.offset


class Scene:
    """One test's broker. It works with any broker that is an Inspector, by its URL."""

    def __init__(self, url: str, backend: Backend, queues: Queues | None = None) -> None:
        self.url = url
        self._queues = queues
        self.backend = backend
        self.broker: Broker = backend.broker
        self.done: list[Message] = []
        """What was emitted, and this test has taken from the broker."""
        self.published: list[str] = []
        self._workers: list[WorkerProcess] = []
        self._crews: list[Crew] = []
        self._collector: Consumer = backend.broker.consume([DONE])

    @property
    def inspector(self) -> Inspector:
        assert isinstance(self.broker, Inspector), f"{self.url} has no Inspector: nobody could tell what was lost"
        return self.broker

    @property
    def is_atomic(self) -> bool:
        """Whether what is emitted is in the commit of its ack."""
        return bool(self.broker.features[Capability.ATOMIC])

    # -- doing -------------------------------------------------------------------------------------------------------

    async def publish(self, *tasks: Task) -> list[str]:
        """Publish these in one call; returns their ids."""
        messages = [outgoing(task) for task in tasks]
        await self.broker.publish(messages)
        self.published += (message.id for message in messages)
        return [message.id for message in messages]

    async def worker(self, options: Options | None = None, *, ready: bool = True) -> WorkerProcess:
        """Start one; with `ready`, return when it consumes."""
        worker = await WorkerProcess.start(self.url, options or Options(lease=LEASE))
        self._workers.append(worker)
        if ready:
            await self.wait(worker.tells("ready"), "a worker to be ready")
        return worker

    @contextlib.asynccontextmanager
    async def crew(self, size: int, options: Options) -> AsyncIterator[Crew]:
        async with crew(self.url, size, options) as working:
            self._crews.append(working)
            yield working

    async def freeze(self, worker: WorkerProcess) -> None:
        """Freeze it outside of its commits: a process that stands still with a file's lock stops all others."""
        while True:
            worker.freeze()
            try:
                await self.broker.declare([DONE])
                return
            except BrokerUnavailable:
                worker.thaw()
                await self.broker.declare([DONE])  # when its commit is over

    # -- seeing ------------------------------------------------------------------------------------------------------

    async def wait(self, awaitable: Awaitable[T], for_what: str, *, patience: float = PATIENCE) -> T:
        """Await what must come; fails with the life of everything here where it does not."""
        try:
            async with asyncio.timeout(patience):
                return await awaitable
        except TimeoutError:
            pytest.fail(f"waited {patience:.0f} s for {for_what}\n{await self.life()}")
        except AssertionError as error:
            pytest.fail(f"waiting for {for_what}: {error}\n{await self.life()}")

    async def until_done(self, count: int, *, patience: float = PATIENCE) -> None:
        """Return when so many messages of `done` have come in all."""
        while len(self.done) < count:
            wanted = f"{count} messages done, of which {len(self.done)} came"
            await self._keep(await self.wait(self._collector.fetch({DONE: 1000}), wanted, patience=patience))

    async def collect(self) -> None:
        """Take all that is left of `done`, where one cannot look at it."""
        if self._queues is not None:
            await self.wait(self._collect(self._queues), "all that is done to be taken")

    async def _collect(self, queues: Queues) -> None:
        while await queues.count(DONE):
            with contextlib.suppress(TimeoutError, BrokerUnavailable):
                async with asyncio.timeout(LOOK):  # it may be an ack of ours that is still on its way
                    deliveries = await self._collector.fetch({DONE: 1000})
                await self._keep(deliveries)

    async def _keep(self, deliveries: Sequence[Delivery]) -> None:
        await self._collector.settle([Outcome(delivery, Action.ACK) for delivery in deliveries])
        self.done += self._new(delivery.message for delivery in deliveries)

    def _new(self, messages: Iterable[Message]) -> list[Message]:
        """Without what a crash has repeated, where that can be."""
        if self.is_atomic:
            return list(messages)
        seen = {message.id for message in self.done}
        return list({message.id: message for message in messages if message.id not in seen}.values())

    async def until_dead(self, count: int) -> None:
        """Return when so many dead letters were written in all."""
        queue = Subscription(f"dlq_{WORK.topic}", "audit", lease=PATIENCE)
        consumer = self.broker.consume([queue])
        seen = 0
        while seen < count:
            wanted = f"{count} dead letters, of which {seen} came"
            deliveries = await self.wait(consumer.fetch({queue: 100}), wanted)
            await consumer.settle([Outcome(delivery, Action.ACK) for delivery in deliveries])
            seen += len(deliveries)
        await consumer.close()

    async def open(self) -> int:
        """How many messages are not done and not dead: waiting, delayed, retrying, in flight."""
        return await self.left(WORK.topic)

    async def left(self, topic: str) -> int:
        """How many messages of this topic, for the group `shop`, are not done and not dead."""
        subscription = Subscription(topic, WORK.group)
        if self._queues is not None:
            return await self._queues.open(subscription)
        return (await status_of(self.inspector, subscription)).left

    async def account(self) -> Account:
        return await account(self.inspector, self.broker.features, WORK, DONE, self.done, await self.open())

    async def check(self, *, done: int, dead: int = 0, open: int = 0) -> None:
        """published = done + dead + waiting, exactly; and each of them is so many."""
        if not self.is_atomic:  # the ack follows what we have seen
            await self.wait(self._until_open(open), f"{open} messages to be open")
        found = await self.account()
        faults = found.faults(self.published)
        counts = {"done": found.done.total(), "dead": found.dead.total(), "open": found.open}
        expected = {"done": done, "dead": dead, "open": open}
        if faults or counts != expected:
            pytest.fail(f"expected {expected}, found {counts}; {'; '.join(faults)}\n{await self.life()}")

    async def waiting(self, count: int) -> list[tuple[str, int]]:
        """What waits, so many, and the attempts that would be next; where one cannot look at it, it is claimed."""
        if self.broker.features[Capability.PEEK]:
            messages = await self.inspector.peek(WORK.topic, WORK.group, limit=count + 1)
            return [(message.id, message.attempt) for message in messages]
        consumer = self.broker.consume([WORK])
        claimed: list[Message] = []
        while len(claimed) < count:
            deliveries = await self.wait(consumer.fetch({WORK: count - len(claimed)}), f"{count} messages to wait")
            claimed += (delivery.message for delivery in deliveries)
        return sorted((message.id, message.attempt) for message in claimed)

    async def _until_open(self, count: int) -> None:
        while await self.open() != count:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(LOOK)

    async def life(self) -> str:
        workers = [*self._workers, *(worker for each in self._crews for worker in each.working)]
        try:
            story = await life(self.inspector)
        except Exception as error:
            story = f"the broker does not say: {error!r}"
        return "\n  ".join([story, *map(str, workers)])

    async def close(self) -> None:
        for worker in self._workers:
            await worker.kill()
        await self.broker.close()


@contextlib.asynccontextmanager
async def scene(
    url: str, clock: Clock = SYSTEM_CLOCK, *, eyes: str | None = None, queues: Queues | None = None
) -> AsyncIterator[Scene]:
    """A scene on `url`, with the groups of the workers and of the test declared; `eyes` is the test's own way there."""
    backend = open_backend(eyes or url, clock=clock)
    await backend.broker.connect()
    await backend.broker.declare([WORK, DONE, Subscription(f"dlq_{WORK.topic}", "audit", lease=PATIENCE)])
    here = Scene(url, backend, queues)
    try:
        yield here
    finally:
        await here.close()


def outgoing(task: Task) -> Outgoing:
    id = new_id()
    return Outgoing(id, WORK.topic, msgspec.json.encode(task), None, {}, id)
