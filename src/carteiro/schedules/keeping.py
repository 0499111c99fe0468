"""How one schedule is kept: its record, its entry in the index, and that there was a change, written in one commit."""

from __future__ import annotations

import os
from typing import Final

from carteiro.message import Write
from carteiro.ports.clock import Clock
from carteiro.ports.store import Entry, Store
from carteiro.schedules.records import Definition, Keys, Schedule, pack


class Keeper:
    """Reads and writes one app's schedules, one at a time."""

    def __init__(self, keys: Keys, clock: Clock, store: Store) -> None:
        self.keys: Final = keys
        self.clock: Final = clock
        self.store: Final = store

    def new(self, name: str, definition: Definition, *, in_code: bool) -> Schedule:
        """One that begins now, and is not written yet."""
        now = self.clock.time()
        due = definition.spec.after(now, now)
        if due is None and not in_code:  # a one-shot whose time has passed is late, or missed
            due = definition.spec.after(0.0, 0.0)
        return Schedule(name, os.urandom(4).hex(), definition, in_code, now, due)

    async def entry(self, name: str) -> Entry | None:
        key = self.keys.record(name)
        return (await self.store.get((key,))).get(key)

    async def put(self, schedule: Schedule, before: Entry | None) -> bool:
        """As `write`, and tell those who wait."""
        if not await self.write(schedule, before):
            return False
        if (hint := self.keys.due(schedule)) is not None:
            await self.ring(hint)
        return True

    async def write(self, schedule: Schedule, before: Entry | None) -> bool:
        """Write the record over the one that was read, with its entry in the index; False where that has changed."""
        hint = self.keys.due(schedule)
        version = 0 if before is None else before.version
        writes = [
            Write(self.keys.record(schedule.name), pack(schedule), ttl=schedule.ttl, expect=version),
            *([] if hint is None else [Write(hint, b"")]),
            Write(self.keys.changed, b""),
        ]
        return (await self.store.write(writes))[0]

    async def ring(self, hint: str) -> None:
        """Wake those who wait, unless what they wait for comes first: they look again then."""
        now, first = self.clock.time(), await self.store.scan(self.keys.dues, limit=1)
        if any(self.keys.read(one)[0] <= now for one in first):  # it may be due, and wait for the one before
            past = await self.store.scan(self.keys.dues, before=self.keys.until(now))
            first = await self.store.scan(self.keys.dues, limit=len(past) + 1)
        if hint in first:
            await self.store.write([Write(self.keys.bell, b"")])

    async def remove(self, schedule: Schedule) -> None:
        hint = self.keys.due(schedule)
        await self.store.write(
            [
                Write(self.keys.record(schedule.name), None),
                *([] if hint is None else [Write(hint, None)]),
                Write(self.keys.changed, b""),
            ]
        )
