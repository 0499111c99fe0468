"""The Redis of the bare loop: what one would write by hand on redis-py to get the same guarantees, and no more.

One stream with a consumer group. An entry in the pending list is a delivery: its idle time is the lease, its consumer
and delivery count are the fence, which a script checks before it acks. What waits for a retry stays pending under no
one's name, as if it had been idle for all of its lease but the delay. The next batch is fetched, and the last one
settled, while one is handled: asked for in turn, the loop was a quarter slower.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from benchmarks.contestants.bare import LEASE, Held, Settled
from benchmarks.contestants.orders import BODY, GROUP, STAMPS, TOPIC, broker
from benchmarks.contestants.publishing import CONCURRENT, Publisher
from carteiro.message import NO_HEADERS, Message

BATCH = 500
DEAD = "dead"
BLOCK = 1.0
"""Seconds that a fetch waits on the server."""


class BareRedis:
    """One worker: a consumer of its own."""

    def __init__(self, url: str, stream: str = TOPIC) -> None:
        self._redis = Redis.from_url(url, max_connections=CONCURRENT + 2)
        self._stream = stream
        self._consumer = uuid4().hex
        folder = Path(__file__).parent
        self._settle_script = self._redis.register_script((folder / "bare_settle.lua").read_text())
        self._publish_script = self._redis.register_script((folder / "bare_publish.lua").read_text())
        self._coming: asyncio.Task[Sequence[Any]] | None = None
        self._look_at = 0.0
        self._numbers = itertools.count()

    async def create(self) -> None:
        try:
            await self._redis.xgroup_create(self._stream, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def publish(self, body: bytes = BODY) -> None:
        await self._redis.xadd(self._stream, {"id": f"bare-{next(self._numbers):x}", "body": body})

    async def publish_many(self, count: int) -> None:
        """In one call of the script: 4 times as fast as a pipeline."""
        arguments: list[str | bytes] = []
        for number in itertools.islice(self._numbers, count):
            arguments += (f"bare-{number:x}", BODY)
        await self._publish_script(keys=[self._stream], args=arguments)

    async def turn(self, settled: Settled) -> Sequence[Any]:
        if self._coming is None:
            await self.create()
            self._coming = asyncio.create_task(self._fetch())
        settling = asyncio.create_task(self._settle(settled))
        rows = await self._coming
        self._coming = asyncio.create_task(self._fetch())
        await settling
        return rows

    def held(self, row: Any) -> Held:
        return row[0], row[2]

    def message(self, row: Any) -> Message:
        entry, fields, attempt = row
        id = fields[b"id"].decode()
        return Message(
            id, self._stream, fields[b"body"], None, NO_HEADERS, id, int(entry.partition(b"-")[0]) / 1000, attempt
        )

    async def renew(self, held: Sequence[Held]) -> None:
        if held:
            await self._redis.xclaim(self._stream, GROUP, self._consumer, 0, [id for id, _ in held], justid=True)

    async def _fetch(self) -> Sequence[Any]:
        """What is new, waiting for it; and now and then what its worker or its retry has left."""
        while True:
            if time.monotonic() >= self._look_at:
                self._look_at = time.monotonic() + BLOCK
                if left := await self._left():
                    return left
            found: Any = await self._redis.xreadgroup(
                GROUP, self._consumer, {self._stream: ">"}, count=BATCH, block=int(BLOCK * 1000)
            )
            if found:
                return [(entry, fields, 1) for entry, fields in found[0][1]]

    async def _left(self) -> Sequence[Any]:
        _, entries, *_ = await self._redis.xautoclaim(
            self._stream, GROUP, self._consumer, int(LEASE * 1000), count=BATCH
        )
        if not entries:
            return []
        first, last = entries[0][0], entries[-1][0]
        pending = await self._redis.xpending_range(self._stream, GROUP, first, last, BATCH, self._consumer)
        attempts = {one["message_id"]: one["times_delivered"] for one in pending}
        return [(entry, fields, attempts[entry]) for entry, fields in entries if entry in attempts]

    async def _settle(self, settled: Settled) -> None:
        for attempt, ids in settled.by_attempt().items():
            await self._settle_script(keys=[self._stream], args=[GROUP, self._consumer, attempt, *ids])
        for delay, (id, attempt) in settled.retried:
            idle = int(max(0.0, LEASE - delay) * 1000)
            await self._redis.xclaim(
                self._stream, GROUP, "retries", 0, [id], idle=idle, retrycount=attempt, justid=True
            )
        for reason, held in settled.dead:
            await self._redis.xadd(DEAD, {"id": held[0], "reason": reason})
            await self._settle_script(keys=[self._stream], args=[GROUP, self._consumer, held[1], held[0]])


@asynccontextmanager
async def publishing() -> AsyncIterator[Publisher]:
    bare, stamps = BareRedis(broker()), BareRedis(broker(), STAMPS)
    await bare.create()
    await stamps.create()
    yield Publisher(bare.publish, bare.publish_many, lambda sent: stamps.publish(repr(sent).encode()))
