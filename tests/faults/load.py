"""Messages of every fate, published while the broker comes and goes, and accounted for to the last one.

A publish that raised may have been done or not, and is not repeated here.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence

import pytest

from carteiro.errors import BrokerUnavailable
from carteiro.message import Outgoing
from tests.faults.scene import LEASE, LOOK, PATIENCE, Scene, outgoing
from tests.faults.worker import Options, Task

WORKERS = 4
ATTEMPTS = 6
OPTIONS = Options(lease=LEASE, attempts=ATTEMPTS, backoff=0.1, concurrency=20, quiet=True)

_BATCH = 25
_PUBLISHERS = 4


class Load:
    """What is published for the workers of `here`, in batches, by four at once. `publish` raises BrokerUnavailable."""

    def __init__(self, here: Scene, publish: Callable[[Sequence[Outgoing]], Awaitable[object]]) -> None:
        self.acknowledged: list[str] = []
        self.unknown: list[list[str]] = []
        """The ids of each batch whose publish raised."""
        self._here = here
        self._publish = publish
        self._doomed: set[str] = set()
        self._chance = random.Random(3)
        self._acknowledged_more = asyncio.Event()

    async def publish(self, count: int, *, over: float) -> None:
        """Until so many are acknowledged, which takes `over` seconds if nothing is in the way."""
        pause = over * _BATCH * _PUBLISHERS / count

        async def publisher() -> None:
            while len(self.acknowledged) < count:
                await self._publish_batch()
                await asyncio.sleep(random.uniform(0, 2 * pause))

        await asyncio.gather(*(publisher() for _ in range(_PUBLISHERS)))

    async def until_acknowledged(self, count: int) -> None:
        """Return when so many publishes in all have returned."""

        async def come() -> None:
            while len(self.acknowledged) < count:
                self._acknowledged_more.clear()
                await self._acknowledged_more.wait()

        await self._here.wait(come(), f"{count} acknowledged publishes, of which {len(self.acknowledged)} came")

    async def until_ended(self) -> None:
        """Return when every message is done or dead."""
        await self._here.wait(self._none_is_open(), "each message to be done or dead", patience=2 * PATIENCE)

    async def check(self) -> None:
        """Each acknowledged message has ended once, in one way; of the others each batch has, or it is not there.

        That a batch is whole or not there is for brokers whose commit holds it, and that a message is not done and dead
        of lost leases for those whose commit holds its ack and what it emits.
        """
        await self._here.collect()
        found = await self._here.account()
        letters = await self._here.inspector.dead_letters()
        worn = {letter.message.id for letter in letters if "WorkerLost" in letter.reason}
        if not self._here.is_atomic:  # it was done, its ack was lost, and then its repeat's every lease
            for id in worn & found.done.keys():
                del found.dead[id]
        faults = found.faults(self.acknowledged, perhaps=True)
        ended = found.done + found.dead
        perhaps = {id for batch in self.unknown for id in batch}
        innocent = {letter.message.id for letter in letters} - self._doomed - worn
        wrong = {
            "not ended": [str(found.open)] if found.open else [],
            "never published": ended.keys() - set(self.acknowledged) - perhaps,
            "done, though no attempt can have succeeded": found.done.keys() & self._doomed,
            "dead for no reason": innocent,
            "published in part": [
                batch[0]
                for batch in self.unknown
                if self._here.is_atomic and 0 < sum(id in ended for id in batch) < len(batch)
            ],
        }
        faults += [f"{what}: {len(ids)}, such as {sorted(ids)[:5]}" for what, ids in wrong.items() if ids]
        if faults:
            pytest.fail(f"{'; '.join(faults)}\n{await self._here.life()}")

    async def _publish_batch(self) -> None:
        batch = [self._message() for _ in range(_BATCH)]
        ids = [message.id for message in batch]
        try:
            await self._publish(batch)
        except BrokerUnavailable:
            self.unknown.append(ids)
            return
        self.acknowledged += ids
        self._acknowledged_more.set()

    def _message(self) -> Outgoing:
        fails = self._chance.choices([0, 1, 2, ATTEMPTS], [80, 12, 4, 4])[0]
        message = outgoing(Task(fails=fails, seconds=self._chance.uniform(0, 0.01)))
        if fails == ATTEMPTS:
            self._doomed.add(message.id)
        return message

    async def _none_is_open(self) -> None:
        while True:
            with contextlib.suppress(BrokerUnavailable):  # our own connection has suffered too
                if not await self._here.open():
                    return
            await asyncio.sleep(LOOK)
