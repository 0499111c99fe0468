"""The in-memory broker: the Broker and Inspector ports on one shared `State`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Final
from weakref import WeakSet

from carteiro.backends.memory.consumer import MemoryConsumer
from carteiro.backends.memory.state import State
from carteiro.backends.memory.store import MemoryStore
from carteiro.message import DeadLetter, Message, Outgoing, Retention, Subscription
from carteiro.ports.broker import GroupStatus
from carteiro.ports.features import NATIVE, Capability, Features, Support

_MISSING: Final = {
    Capability.MULTIPROCESS: Support("unsupported", "it lives in one process"),
    Capability.DURABLE: Support("unsupported", "it goes with its process"),
}
FEATURES: Final = Features("memory", {capability: _MISSING.get(capability, NATIVE) for capability in Capability})


class MemoryBroker:
    """One handle. Closing it closes its consumers and its store; what the broker holds stays for its other handles."""

    features = FEATURES

    def __init__(self, state: State, store: MemoryStore) -> None:
        self._state = state
        self._consumers: WeakSet[MemoryConsumer] = WeakSet()
        self.store = self._store = store
        self.unrouted = state.unrouted

    async def connect(self) -> None: ...

    async def close(self) -> None:
        for consumer in list(self._consumers):
            await consumer.close()
        await self._store.close()

    async def declare(self, subscriptions: Sequence[Subscription], retentions: Sequence[Retention] = ()) -> None:
        for retention in retentions:
            self._state.retain(retention)
        for subscription in subscriptions:
            self._state.declare(subscription)

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        return self._state.publish(messages)

    def consume(self, subscriptions: Sequence[Subscription]) -> MemoryConsumer:
        """Raises BrokerError for a subscription that was never declared."""
        consumer = MemoryConsumer(self._state, subscriptions)
        self._consumers.add(consumer)
        return consumer

    # -- Inspector -------------------------------------------------------------------------------------------------

    async def groups(self) -> Sequence[GroupStatus]:
        now = self._state.clock.time()
        dead = Counter(Subscription(letter.topic, letter.group) for letter in self._state.dead_letters(None))
        statuses = [
            queue.status(now, dead=dead[one], consumers=len(self._state.listeners.get(one, ())))
            for one, queue in self._state.queues.items()
        ]
        return sorted(statuses, key=lambda status: (status.topic, status.group))

    async def peek(self, topic: str, group: str, limit: int = 10) -> Sequence[Message]:
        """Each as its next attempt will see it. Raises BrokerError for an unknown group."""
        waiting = self._state.queue(Subscription(topic, group)).waiting(self._state.clock.time())
        return [row.as_message(row.attempt + 1) for row in waiting[:limit]]

    async def dead_letters(
        self, queue: str | None = None, *, ids: Sequence[str] | None = None, limit: int | None = None
    ) -> Sequence[DeadLetter]:
        return self._state.dead_letters(queue, ids)[:limit]

    async def replay(self, queue: str, *, ids: Sequence[str] | None = None, body: bytes | None = None) -> int:
        """Raises BrokerError, and replays none, where a group that failed is no longer there."""
        letters = self._state.dead_letters(queue, ids)
        self._state.replay(letters, body)
        return len(letters)

    async def purge_dead(
        self, queue: str, *, ids: Sequence[str] | None = None, older_than: timedelta | None = None
    ) -> int:
        until = self._state.clock.time() - (timedelta(0) if older_than is None else older_than).total_seconds()
        letters = [letter for letter in self._state.dead_letters(queue, ids) if letter.at <= until]
        for letter in letters:
            del self._state.dead[letter.id]
        return len(letters)

    async def purge(self, topic: str, group: str) -> int:
        """Raises BrokerError for an unknown group."""
        return len(self._state.queue(Subscription(topic, group)).take_out(self._state.clock.time(), lambda _: True))

    async def remove_group(self, topic: str, group: str) -> None:
        self._state.remove(Subscription(topic, group))

    async def rewind(self, topic: str, group: str, to: float) -> int:
        return self._state.rewind(Subscription(topic, group), to)
