"""What the tests of schedules use: an app that hears what is sent, and what the id of a firing tells."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from carteiro import Message
from carteiro.ports.clock import SYSTEM_CLOCK, Clock
from tests.e2e.tour.stage import Stage, soon
from tests.schedules.mortal import Fates, Process, no_fate

BEATS = "beats"


class Due(NamedTuple):
    name: str
    due: int
    """In milliseconds."""


def due_of(id: str) -> Due:
    name, _, rest = id.rpartition("@")
    return Due(name, int(rest.partition("-")[0]))


class Ear:
    """Hears what is published to some topics, as a group of its own."""

    def __init__(self, stage: Stage, *topics: str, **options: Any) -> None:
        self.app = stage.app("listener", **options)
        self.heard: list[Message] = []
        self._news: asyncio.Queue[Message] = asyncio.Queue()

        async def hear(message: Message) -> None:
            self.heard.append(message)
            self._news.put_nowait(message)

        for topic in topics or (BEATS,):
            self.app.subscriber(topic)(hear)

    async def next(self) -> Message:
        return await soon(self._news.get())

    async def many(self, count: int) -> list[Message]:
        return [await self.next() for _ in range(count)]

    @property
    def dues(self) -> list[Due]:
        return [due_of(message.id) for message in self.heard]

    @property
    def silent(self) -> bool:
        """Whether nothing was heard that was not asked for."""
        return self._news.empty()


async def hearing(stage: Stage, *topics: str) -> Ear:
    ear = Ear(stage, *topics)
    await stage.run(ear.app)
    return ear


def value_of(message: Message) -> Any:
    return msgspec.json.decode(message.body)


class Crowd:
    """Processes of one app on the stage's broker, which can die."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._living: list[Process] = []

    def process(self, fates: Fates = no_fate, clock: Clock | None = None) -> Process:
        stage = self._stage
        store = None if stage.store == stage.url else stage.store
        process = Process(stage.url, clock or SYSTEM_CLOCK, store=store)
        process.mortal.fates = fates
        self._living.append(process)
        return process

    async def start(self, *processes: Process, **options: Any) -> None:
        """Returns when they fire."""
        for process in processes:
            running = process.start(**options)
            ready = asyncio.ensure_future(process.app.ready())
            died = asyncio.ensure_future(process.mortal.died.wait())
            await soon(asyncio.wait((running, ready, died), return_when=asyncio.FIRST_COMPLETED))
            ready.cancel()
            died.cancel()
            if running.done():
                running.result()

    async def close(self) -> None:
        for process in self._living:
            await soon(process.end())


def distances(dues: Sequence[Due]) -> set[int]:
    """Between each and the next, in milliseconds."""
    times = [one.due for one in dues]
    return {later - earlier for earlier, later in itertools.pairwise(times)}


def names(statuses: Sequence[Any]) -> list[str]:
    return [status.name for status in statuses]
