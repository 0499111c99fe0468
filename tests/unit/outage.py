"""A broker that a test takes away and brings back, and the time that passes meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from carteiro.backends.memory import MemoryBackend
from carteiro.backends.memory.broker import MemoryBroker
from carteiro.backends.memory.state import State
from carteiro.errors import BrokerUnavailable
from carteiro.message import NO_HEADERS, Outgoing, Subscription, new_id
from carteiro.ports.clock import Clock
from carteiro.testing.clock import VirtualClock


class Unsteady(MemoryBroker):
    """`away`, it takes nothing. `taken` is what it took, probes aside; `tries` counts what it was asked."""

    def __init__(self, clock: Clock) -> None:
        state = State(clock)
        super().__init__(state, MemoryBackend(state, "memory://").store)
        self.away = False
        self.clock = clock
        self.tries = 0
        self.taken: list[Outgoing] = []
        self.due: list[float] = []
        """When each of them becomes visible."""
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.error: Callable[[Sequence[Outgoing]], Exception | None] = lambda messages: None
        """What it raises for these, though it is there."""

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        self.tries += 1
        if self.away:
            raise BrokerUnavailable("redis://nowhere cannot be reached")
        await self.may_answer.wait()
        if (error := self.error(messages)) is not None:
            raise error
        unrouted = await super().publish(messages)
        taken = [message for message in messages if message.topic != "$probe"]
        self.taken += taken
        self.due += (self.clock.time() + message.delay for message in taken)
        return unrouted

    @property
    def bodies(self) -> list[bytes]:
        return [message.body for message in self.taken]


class QuickClock:
    """The machine's clock, so many times as fast."""

    def __init__(self, pace: float = 100.0) -> None:
        self._pace = pace

    def time(self) -> float:
        return 1_700_000_000.0 + self.monotonic()

    def monotonic(self) -> float:
        return self._pace * asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self._pace)

    async def sleep_until(self, moment: float) -> None:
        await self.sleep(max(0.0, moment - self.time()))


def outgoing(body: int | bytes, topic: str = "orders", *, delay: float = 0.0, key: str | None = None) -> Outgoing:
    id = new_id()
    return Outgoing(id, topic, b"%d" % body if isinstance(body, int) else body, key, NO_HEADERS, id, delay)


ORDERS = Subscription("orders", "shop")


async def until(condition: Callable[[], object], clock: VirtualClock | None = None) -> None:
    """Return when it holds; a virtual clock moves on meanwhile, from one due time to the next."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)
            if clock is not None and not condition() and (due := clock.next_due()) is not None:
                clock.advance_to(due)


async def later(clock: VirtualClock, seconds: float) -> None:
    """Let so much time pass, and what is due happen at its time."""
    end = clock.time() + seconds
    while True:
        for _ in range(20):
            await asyncio.sleep(0)
        due = clock.next_due()
        if due is None or due > end:
            break
        clock.advance_to(due)
    clock.advance_to(end)
    for _ in range(20):
        await asyncio.sleep(0)
