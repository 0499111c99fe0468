"""Firing: each due time of each schedule is sent once, by any number of processes of which none leads.

Each of them waits for the earliest entry of the index, or for the bell. What is due they fire in four steps:

    read     the records, which say whether it is due, and what to send
    claim    a key of (schedule, due time), which the store gives to one of them, and takes back after `LEASE`
    send     under an id made of (schedule, due time), which brokers take once within `WINDOW`
    move     the record to its next due time, over the version that was read, and the index with it

A process that dies after the claim leaves all as it was: when the claim has ended, another goes the same way. Was the
message sent before it died, the broker knows its id. A process that was frozen for longer than its claim holds sends
nothing that it read before. Clocks need not agree: the first clock that comes to a due time fires it, the record is
moved, and the others find nothing to do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from carteiro.engine.reconnect import reconnect_wait
from carteiro.errors import BrokerCorrupted, BrokerUnavailable, ConfigurationError
from carteiro.message import Write
from carteiro.ports.clock import Clock
from carteiro.ports.store import Entry, Store
from carteiro.schedules.endings import is_busy, mark_key
from carteiro.schedules.planning import planned
from carteiro.schedules.records import Keys, Last, Schedule, pack, schedule_of

log = logging.getLogger("carteiro.schedules")

LEASE: Final = 5.0
"""Seconds for which a claim holds: the time after which what a dead process had claimed is fired by another."""
WINDOW: Final = 600.0
"""Seconds for which brokers remember the ids of firings."""
LEFT: Final = 60.0
"""Seconds after which what this process could not read is tried again."""
AT_ONCE: Final = 2000
"""Schedules that are looked for at once. What is due is late until it is sent: their records are moved when all are."""
STEP: Final = 200
"""Those of them that are sent before the next are read: what takes longer keeps the first waiting for the last."""


class Firing(msgspec.Struct, frozen=True):
    """One schedule at one due time, to be sent under this id."""

    schedule: Schedule
    due: float
    id: str


Send = Callable[[Sequence[Firing]], Awaitable[Mapping[str, str]]]
"""Sends firings; returns the ids of those that are safe, each with the id of what was sent: in place of a unique task
that waits or runs already it is that one's.
"""


class _Move(msgspec.Struct):
    """A schedule on its way to its next due time."""

    hint: str
    hint_version: int
    schedule: Schedule
    version: int
    firings: tuple[Firing, ...]
    next: Schedule


class _Aside(msgspec.Struct):
    """A schedule that is due and not this process' to fire: before `until`, or before one of the keys that it waits for
    has another version.
    """

    until: float | None
    waits_for: Mapping[str, int] = {}


class Scheduler:
    """Fires the schedules of one app, in this process."""

    def __init__(self, app: str, store: Store, clock: Clock, send: Send) -> None:
        self._keys = Keys(app)
        self._store = store
        self._clock = clock
        self._send = send
        self._rung = 0
        """The bell's version."""
        self._aside: dict[str, _Aside] = {}
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Have `run` return once what it is firing is fired."""
        self._stopping.set()

    async def run(self) -> None:
        """Until `stop`."""
        tries = 0
        while not self._stopping.is_set():
            try:
                await self._fire_due()
                await self._wait()
                tries = 0
            except asyncio.CancelledError:
                raise
            except Exception as error:
                if isinstance(error, BrokerUnavailable):
                    log.warning("schedules wait for the broker or the store: %s", error)
                else:
                    log.exception("schedules cannot be fired, trying again")
                await self._rest(reconnect_wait(tries))
                tries += 1

    async def _rest(self, seconds: float) -> None:
        """Wait so long, or until `stop`."""
        waits = [asyncio.ensure_future(one) for one in (self._clock.sleep(seconds), self._stopping.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    # -- waiting ---------------------------------------------------------------------------------------------------

    async def _wait(self) -> None:
        """Return when something may be due, at once if it is, or the bell was rung."""
        hints = await self._store.scan(self._keys.dues, limit=len(self._aside) + 1)
        upcoming = next(((time, name) for time, name in map(self._keys.read, hints) if name not in self._aside), None)
        moments = [one.until for one in self._aside.values() if one.until is not None]
        if upcoming is not None:
            moments.append(upcoming[0])
        if moments and min(moments) <= self._clock.time():
            return
        watched = {key: version for one in self._aside.values() for key, version in one.waits_for.items()}
        told = asyncio.ensure_future(self._store.changed({self._keys.bell: self._rung, **watched}))
        waits: list[asyncio.Future[Any]] = [told, asyncio.ensure_future(self._stopping.wait())]
        if moments:
            waits.append(asyncio.ensure_future(self._clock.sleep_until(min(moments))))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if told.done():
                self._take_in(told.result())
        finally:
            for wait in waits:
                wait.cancel()

    def _take_in(self, changed: Mapping[str, Entry | None]) -> None:
        bell = self._keys.bell
        if bell in changed:
            entry = changed[bell]
            self._rung = 0 if entry is None else entry.version
        self._aside = {name: one for name, one in self._aside.items() if one.waits_for.keys().isdisjoint(changed)}

    # -- firing ----------------------------------------------------------------------------------------------------

    async def _fire_due(self) -> None:
        now = self._clock.time()
        self._aside = {name: one for name, one in self._aside.items() if one.until is None or one.until > now}
        limit = AT_ONCE + len(self._aside)
        found = await self._store.scan(self._keys.dues, before=self._keys.until(now), limit=limit)
        hints = [(hint, entry.version) for hint, entry in found.items() if self._keys.read(hint)[1] not in self._aside]
        begun, moves, sent = self._clock.monotonic(), list[_Move](), dict[str, str]()
        try:
            for start in range(0, len(hints), STEP):
                read_at = self._clock.monotonic()
                if read_at - begun > LEASE / 2:
                    break  # what was sent is to be moved before its claims are over
                claimed = await self._claimed(await self._moves(hints[start : start + STEP], now))
                if self._clock.monotonic() - read_at > LEASE / 2:
                    break  # what was read may be out of date, and the claims may be over
                firings = [firing for move in claimed for firing in move.firings]
                sent |= await self._send(firings) if firings else {}
                moves += claimed
        finally:  # also where a later step has failed: what is not moved is sent again
            await self._move([move for move in moves if all(firing.id in sent for firing in move.firings)], sent)

    async def _moves(self, hints: Sequence[tuple[str, int]], now: float) -> list[_Move]:
        """What to do with the schedules behind these; hints that are none any more are put right."""
        keys = {hint: self._keys.record(self._keys.read(hint)[1]) for hint, _ in hints}
        entries = await self._store.get(list(keys.values()))
        due: list[tuple[str, int, Schedule, int]] = []
        wrong: list[Write] = []
        for hint, hint_version in hints:
            entry = entries.get(keys[hint])
            try:
                schedule = None if entry is None else schedule_of(entry)
            except BrokerCorrupted as error:
                self._leave(self._keys.read(hint)[1], error)
                continue
            right = None if schedule is None else self._keys.due(schedule)
            if entry is not None and schedule is not None and right == hint:
                due.append((hint, hint_version, schedule, entry.version))
            else:
                wrong += [Write(hint, None, expect=hint_version), *([] if right is None else [Write(right, b"")])]
        if wrong:
            await self._store.write(wrong)
        busy = await self._busy([schedule for _, _, schedule, _ in due])
        moves: list[_Move] = []
        for hint, hint_version, schedule, version in due:
            mark = busy.get(schedule.name)
            if mark is not None and schedule.definition.overlap == "queue":
                await self._queue(schedule, version, mark)
                continue
            try:
                moves.append(_move_of(hint, hint_version, schedule, version, now, is_busy=mark is not None))
            except ConfigurationError as error:  # a zone that this machine does not know
                self._leave(schedule.name, error)
        return moves

    def _leave(self, name: str, error: Exception) -> None:
        """To others: one that this process cannot read must not keep it from firing the rest."""
        log.error("schedule `%s` cannot be fired here: %s", name, error)
        self._aside[name] = _Aside(self._clock.time() + LEFT)

    async def _queue(self, schedule: Schedule, version: int, mark: tuple[str, int]) -> None:
        """Put it aside until its last firing is over, or somebody changes it."""
        record = self._keys.record(schedule.name)
        if schedule.queued is None:
            queued = msgspec.structs.replace(schedule, queued=schedule.due)
            if not (await self._store.write([Write(record, pack(queued), expect=version)]))[0]:
                return
            version += 1
        self._aside[schedule.name] = _Aside(None, {record: version, mark[0]: mark[1]})

    async def _busy(self, schedules: Sequence[Schedule]) -> dict[str, tuple[str, int]]:
        """Those whose last firing is not over and has to be, with where the store will say so and its version now."""
        keys = {
            one.name: mark_key(one.definition.what, one.last.id)
            for one in schedules
            if one.definition.overlap != "allow" and one.last is not None
        }
        if not keys:
            return {}
        found = await self._store.get(list(keys.values()))
        return {
            one.name: (keys[one.name], found[keys[one.name]].version)
            for one in schedules
            if one.name in keys and is_busy(one.definition.what, found.get(keys[one.name]))
        }

    async def _claimed(self, moves: Sequence[_Move]) -> list[_Move]:
        """Those that this process is to make; the others wait until their claims are over."""
        if not moves:
            return []
        claims = [self._keys.claim(move.schedule.id_at(move.schedule.due or 0.0)) for move in moves]
        given = await self._store.write([Write(claim, b"", ttl=LEASE, expect=0) for claim in claims])
        until = self._clock.time() + LEASE
        for move in moves:  # also its own: what cannot be sent now is tried again when its claim has ended
            self._aside[move.schedule.name] = _Aside(until)
        return [move for move, mine in zip(moves, given, strict=True) if mine]

    async def _move(self, moves: Sequence[_Move], sent: Mapping[str, str]) -> None:
        """Move the records on; who has changed one meanwhile has it moved as it is now."""
        now, writes = self._clock.time(), list[Write]()
        for move in moves:
            writes += self._writes(move, move.schedule, move.version, sent, now)
        done = await self._store.write(writes) if writes else ()
        for move, moved in zip(moves, done[::3], strict=True):
            if not moved:
                await self._move_again(move, sent, now)
            self._aside.pop(move.schedule.name, None)

    async def _move_again(self, move: _Move, sent: Mapping[str, str], now: float) -> None:
        key, was = self._keys.record(move.schedule.name), move.schedule
        while (entry := (await self._store.get((key,))).get(key)) is not None:
            current = schedule_of(entry)
            if (current.token, current.due) != (was.token, was.due):
                return  # it was given other times
            if current.definition.spec != was.definition.spec:
                move.next = msgspec.structs.replace(move.next, due=current.after(now), queued=None)
            if (await self._store.write(self._writes(move, current, entry.version, sent, now)))[0]:
                return

    def _writes(
        self, move: _Move, current: Schedule, version: int, sent: Mapping[str, str], now: float
    ) -> Sequence[Write]:
        """Three: the record, which may be refused, and the index's old entry and new one."""
        last, count = move.next.last, current.count + len(move.firings)
        if move.firings:
            last = Last(move.firings[-1].due, now, sent[move.firings[-1].id])
        following = msgspec.structs.replace(
            current, due=move.next.due, queued=move.next.queued, last=last or current.last, count=count
        )
        hint = self._keys.due(following)
        return (
            Write(self._keys.record(current.name), pack(following), ttl=following.ttl, expect=version),
            # One that was written again meanwhile may be what somebody has changed the record to, and stays.
            Write(move.hint, None, expect=move.hint_version),
            Write(move.hint, None, expect=move.hint_version) if hint is None else Write(hint, b""),
        )


def _move_of(hint: str, hint_version: int, schedule: Schedule, version: int, now: float, *, is_busy: bool) -> _Move:
    plan, overlap = planned(schedule, now), schedule.definition.overlap
    dues, following = plan.dues, plan.next
    if overlap != "allow" and len(dues) > 1:
        if overlap == "queue":
            following = dues[1]
        dues = dues[:1]
    last, queued = schedule.last, None
    if is_busy and dues:
        last, dues = Last(dues[0], now, "" if last is None else last.id, skipped=True), ()
    if overlap == "queue" and following is not None and following <= now:
        queued = following
    moved = msgspec.structs.replace(schedule, due=following, last=last, queued=queued)
    firings = tuple(Firing(schedule, due, schedule.id_at(due)) for due in dues)
    return _Move(hint, hint_version, schedule, version, firings, moved)
