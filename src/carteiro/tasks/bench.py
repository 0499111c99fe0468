"""What the task attempts of one worker share: their reads, and what is known of those that run.

*Reads* of many attempts go to the store together: what asks while one is under way goes with the next.

*Stints* are the tasks that have begun here and wait for something. Whoever ends one from elsewhere, by a cancel or
because its run has failed, writes that in the store and then touches the app's *notice*; each worker waits for that
touch, looks its stints up, and cancels those that are over. A worker that hears nothing, for its store is away, hears
it when the store is back, and at the latest by the refusal of what its task would write.

A stint that lasts longer than a `MOMENT` is written down as running, with an end that is moved on while it lasts: most
tasks are done before, and cost nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from carteiro.engine.batcher import Batcher
from carteiro.engine.reconnect import reconnect_wait
from carteiro.errors import BrokerUnavailable
from carteiro.message import Write
from carteiro.ports.clock import Clock
from carteiro.ports.store import Entry, Store
from carteiro.tasks.progress import Teller
from carteiro.tasks.records import Running, notice_key, pack, record_of, running_key
from carteiro.tasks.tending import Tending

log = logging.getLogger("carteiro.tasks")

MOMENT: Final = 0.25
"""Seconds after which a task is shown as running."""
KEPT: Final = 60.0
"""Seconds for which that is believed of a worker that says nothing more."""
AGAIN: Final = 20.0

_AT_ONCE: Final = 500

_Asked = tuple[Sequence[str], "asyncio.Future[Mapping[str, Entry]]"]


class Stint:
    """One task that runs here. `over` are the keys of the records that end it when they are over."""

    __slots__ = ("cancelled", "id", "marked", "over", "running", "since", "task")

    def __init__(self, id: str, over: Sequence[str], running: Running, since: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.id = id
        self.over = over
        self.running = running
        self.since = since
        self.task = task
        self.cancelled = False
        self.marked: float | None = None
        """When it was last written down (monotonic)."""


class Bench:
    """For one worker of the app `name`; `worker` names it to people.

    `apart` says that the store is not the broker's own. `listen` has the app hear of a topic's events from now on.
    """

    def __init__(
        self,
        name: str,
        store: Store,
        clock: Clock,
        worker: str,
        *,
        apart: bool,
        listen: Callable[[str], Awaitable[None]],
    ) -> None:
        self.name = name
        self.store = store
        self.clock = clock
        self.worker = worker
        self.apart = apart
        self.listen = listen
        self._teller = Teller(self)
        self.tell = self._teller.tell
        self._reads: Batcher[_Asked] = Batcher(self._read, limit=_AT_ONCE)
        self._stints: dict[str, Stint] = {}
        self.heard = 0
        """How often something was said to be over."""
        self.stirred = 0
        """How often that was, or a task began to wait: what was read before is old."""
        self._late: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._marking: asyncio.Task[None] | None = None
        self._tending: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look after what the store keeps, as one of the workers that use it."""
        if self._tending is None:
            self._tending = asyncio.create_task(Tending(self.store, self.clock).run(), name="carteiro runs")

    async def get(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """Those of `keys` that are there, and perhaps others."""
        return await self.ask(keys)

    def ask(self, keys: Sequence[str]) -> asyncio.Future[Mapping[str, Entry]]:
        """As `get`, for whoever waits for it later."""
        answer: asyncio.Future[Mapping[str, Entry]] = asyncio.get_running_loop().create_future()
        self._reads.add((keys, answer))
        return answer

    def enter(self, stint: Stint, heard: int) -> None:
        """Look after it from now on. `heard` is from before its records were read."""
        self._stints[stint.id] = stint
        loop = asyncio.get_running_loop()
        if heard != self.heard:  # what was told meanwhile may be of this one
            late = loop.create_task(self._look_late())
            self._late.add(late)
            late.add_done_callback(self._late.discard)
        self.watch()
        if self._marking is None:
            self._marking = loop.create_task(self._mark(), name="carteiro tasks running")

    def watch(self) -> None:
        """Hear of what is over, from now on."""
        if self._watching is None:
            self._watching = asyncio.get_running_loop().create_task(self._watch(), name="carteiro tasks over")

    def leave(self, stint: Stint) -> Sequence[Write]:
        """What goes with the outcome of a task that was written down as running."""
        if self._stints.get(stint.id) is stint:  # a message that came twice may run twice here
            del self._stints[stint.id]
        return () if stint.marked is None else (Write(running_key(stint.id), None),)

    async def close(self) -> None:
        tasks = [task for task in (self._watching, self._marking, self._tending, *self._late) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._teller.drain()
        await self._reads.drain()

    async def _read(self, asked: list[_Asked]) -> None:
        try:
            found = await self.store.get([key for keys, _ in asked for key in keys])
        except Exception as error:
            for _, answer in asked:
                if not answer.done():
                    answer.set_exception(error)
            return
        for _, answer in asked:
            if not answer.done():
                answer.set_result(found)

    async def _watch(self) -> None:
        key = notice_key(self.name)
        version = tries = 0
        while True:
            try:
                entry = (await self.store.changed({key: version}))[key]
                self.heard += 1
                self.stirred += 1
                await self._look()
                version, tries = 0 if entry is None else entry.version, 0
            except Exception as error:
                if not isinstance(error, BrokerUnavailable):
                    log.exception("cannot see which tasks were cancelled, trying again")
                await self.clock.sleep(reconnect_wait(tries))
                tries += 1

    async def _look(self) -> None:
        """Cancel the stints that are over."""
        stints = list(self._stints.values())
        found = await self.get([key for stint in stints for key in stint.over])
        for stint in stints:
            over = (record_of(found.get(key)) for key in stint.over)
            if any(record is not None and record.is_over for record in over) and self._stints.get(stint.id) is stint:
                stint.cancelled = True
                stint.task.cancel()

    async def _look_late(self) -> None:
        with contextlib.suppress(BrokerUnavailable):
            await self._look()

    async def _mark(self) -> None:
        try:
            while self._stints:
                await self.clock.sleep(MOMENT)
                now = self.clock.monotonic()
                due = [
                    stint
                    for stint in self._stints.values()
                    if now - (stint.since if stint.marked is None else stint.marked)
                    >= (MOMENT if stint.marked is None else AGAIN)
                ]
                for stint in due:
                    stint.marked = now
                if due:
                    await self._write([Write(running_key(one.id), pack(one.running), ttl=KEPT) for one in due])
        finally:
            self._marking = None

    async def _write(self, writes: Sequence[Write]) -> None:
        try:
            await self.store.write(writes)
        except BrokerUnavailable as error:
            log.debug("what runs cannot be written down: %s", error)
