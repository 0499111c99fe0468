"""Firing: each due time of each schedule is sent once, by any number of processes of which none leads.

Each of them waits for the earliest entry of the index, or for the bell. It fires in four steps, of which the first two
are done shortly before the due time, so that then it has only to be sent:

    read     the records, which say what is due, and what to send
    claim    a key of (schedule, due time), which the store gives to one of them, and takes back after `LEASE`
    send     what the records still say, under an id made of (schedule, due time), which brokers take once in `WINDOW`
    move     the record to its next due time, over the version that was read, and the index with it

A process that dies after the claim leaves all as it was: when the claim has ended, another goes the same way. Was the
message sent before it died, the broker knows its id. A process that was frozen for longer than its claim holds sends
nothing that it read before; one that is stopped gives back what it has claimed and not sent. Clocks need not agree: the
first clock that comes to a due time fires it, the record is moved, and the others find nothing to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Final

import msgspec

from carteiro.engine.reconnect import reconnect_wait
from carteiro.errors import BrokerCorrupted, BrokerUnavailable, ConfigurationError
from carteiro.message import Write
from carteiro.ports.clock import Clock
from carteiro.ports.store import Entry, Store
from carteiro.schedules.endings import is_busy, mark_key
from carteiro.schedules.moves import Firing, Move, Mover, move_of
from carteiro.schedules.records import Keys, Schedule, pack, schedule_of

log = logging.getLogger("carteiro.schedules")

AHEAD: Final = 0.2
"""Seconds before its due time in which a firing is read and claimed. Where 1,000 are due at the same second that about
halves what the last of them is late (docs/decisions/0023)."""
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

Send = Callable[[Sequence[Firing]], Awaitable[Mapping[str, str]]]
"""Sends firings; returns the ids of those that are safe, each with the id of what was sent: in place of a unique task
that waits or runs already it is that one's.
"""


class _Aside(msgspec.Struct):
    """A schedule that is not looked for: before `until`, or before one of the keys that it waits for has another
    version. One that is `lost`, to another process, is when the bell is rung.
    """

    until: float | None
    waits_for: Mapping[str, int] = {}
    lost: bool = False


class _Sent(msgspec.Struct):
    """What is to be moved, as far as it is safe: the ids of what is, as `Send` has them."""

    moves: list[Move] = []
    ids: dict[str, str] = {}

    @property
    def safe(self) -> list[Move]:
        return [move for move in self.moves if all(firing.id in self.ids for firing in move.firings)]


class Scheduler:
    """Fires the schedules of one app, in this process."""

    def __init__(self, app: str, store: Store, clock: Clock, send: Send) -> None:
        self._keys = Keys(app)
        self._store = store
        self._clock = clock
        self._send = send
        self._rung = 0
        """The bell's version."""
        self._mover = Mover(self._keys, store)
        self._aside: dict[str, _Aside] = {}
        self._taken: dict[str, Move] = {}
        """What this process has claimed, and is to send."""
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Have `run` return once what it is firing is fired."""
        self._stopping.set()

    async def run(self) -> None:
        """Until `stop`; what was claimed and is not due yet is for others then."""
        tries = 0
        while not self._stopping.is_set():
            try:
                if not await self._fire_due():
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
        with contextlib.suppress(BrokerUnavailable):  # or they fire it when its claim has ended
            await self._give_back(list(self._taken.values()), Write(self._keys.bell, b""))

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
        """Return when something is to be taken or sent, at once if it is, or the bell was rung."""
        moments = [one.until for one in self._aside.values() if one.until is not None]
        if self._taken:  # and all that is due before them
            moments += (move.at for move in self._taken.values())
        else:
            hints = await self._store.scan(self._keys.dues, limit=len(self._aside) + 1)
            upcoming = (time for time, name in map(self._keys.read, hints) if name not in self._aside)
            moments += (time - AHEAD for time in islice(upcoming, 1))
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
            self._rung = _version(changed[bell])
            self._aside = {name: one for name, one in self._aside.items() if not one.lost}
        self._aside = {name: one for name, one in self._aside.items() if one.waits_for.keys().isdisjoint(changed)}

    # -- firing ----------------------------------------------------------------------------------------------------

    async def _fire_due(self) -> bool:
        """Whether there was anything to fire, so that there may be more."""
        sent = _Sent()
        try:
            await self._send_taken(sent)
            if not sent.moves:
                await self._look(sent)
        finally:  # also where a later step has failed: what is not moved is sent again
            safe = sent.safe
            await self._mover.move(safe, sent.ids, self._clock.time())
            for move in safe:
                self._aside.pop(move.name, None)
        return bool(sent.moves)

    async def _look(self, sent: _Sent) -> None:
        """Take what is due, or will be soon, and send what is."""
        now, begun = self._clock.time(), self._clock.monotonic()
        self._aside = {name: one for name, one in self._aside.items() if one.until is None or one.until > now}
        before = self._keys.until(now + AHEAD + 0.001)  # what `_wait` has seen, whatever floats make of it
        found = await self._store.scan(self._keys.dues, before=before, limit=AT_ONCE + len(self._aside))
        hints = [(hint, entry.version) for hint, entry in found.items() if self._keys.read(hint)[1] not in self._aside]
        for start in range(0, len(hints), STEP):
            if self._clock.monotonic() - begun > LEASE / 2:
                break  # what was sent is to be moved before its claims are over
            await self._claim(await self._moves(hints[start : start + STEP], now))
            await self._send_taken(sent)

    async def _send_taken(self, sent: _Sent) -> None:
        """Send what was taken and is due, some while others are on their way."""
        now = self._clock.time()
        due = [move for move in self._taken.values() if move.at <= now]
        for move in due:
            del self._taken[move.name]
        due = [move for move in await self._unchanged(due) if self._holds(move)]
        if len(due) <= STEP:
            await self._send_some(due, sent)
            return
        steps = [self._send_some(due[start : start + STEP], sent) for start in range(0, len(due), STEP)]
        for trouble in await asyncio.gather(*steps, return_exceptions=True):
            if trouble is not None:
                raise trouble

    async def _send_some(self, moves: Sequence[Move], sent: _Sent) -> None:
        firings = [firing for move in moves for firing in move.firings]
        sent.ids |= await self._send(firings) if firings else {}
        sent.moves += moves

    async def _moves(self, hints: Sequence[tuple[str, int]], now: float) -> list[Move]:
        """What to do with the schedules behind these; hints that are none any more are put right."""
        read_at = self._clock.monotonic()
        keys = {hint: self._keys.record(self._keys.read(hint)[1]) for hint, _ in hints}
        entries = await self._store.get([self._keys.changed, *keys.values()])
        changes = _version(entries.get(self._keys.changed))
        due: list[tuple[str, int, float, Schedule, int]] = []
        wrong: list[Write] = []
        for hint, hint_version in hints:
            entry, (at, name) = entries.get(keys[hint]), self._keys.read(hint)
            try:
                schedule = None if entry is None else schedule_of(entry)
            except BrokerCorrupted as error:
                self._leave(name, error)
                continue
            right = None if schedule is None else self._keys.due(schedule)
            if entry is not None and schedule is not None and right == hint:
                if at > now and schedule.definition.overlap != "allow":
                    self._aside[name] = _Aside(at)  # whether the one before is over is known then
                else:
                    due.append((hint, hint_version, at, schedule, entry.version))
            else:
                wrong += [Write(hint, None, expect=hint_version), *([] if right is None else [Write(right, b"")])]
        if wrong:
            await self._store.write(wrong)
        busy = await self._busy([schedule for *_, schedule, _ in due])
        moves: list[Move] = []
        for hint, hint_version, at, schedule, version in due:
            mark = busy.get(schedule.name)
            if mark is not None and schedule.definition.overlap == "queue":
                await self._queue(schedule, version, mark)
                continue
            try:
                moves.append(
                    move_of(
                        hint, hint_version, schedule, version,
                        at=max(at, now), read_at=read_at, changes=changes if at > now else None,
                        is_busy=mark is not None,
                    )
                )  # fmt: skip
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
            writes = [Write(record, pack(queued), expect=version), Write(self._keys.changed, b"")]
            if not (await self._store.write(writes))[0]:
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

    async def _claim(self, moves: Sequence[Move]) -> None:
        """Take those that this process is to make; the others wait until their claims are over."""
        if not moves:
            return
        given = await self._store.write([Write(self._claim_of(move), b"", ttl=LEASE, expect=0) for move in moves])
        until = self._clock.time() + LEASE
        for move, mine in zip(moves, given, strict=True):
            # Its own too: what cannot be sent now is tried again when its claim has ended.
            self._aside[move.name] = _Aside(until, lost=not mine)
            if mine:
                self._taken[move.name] = move

    def _claim_of(self, move: Move) -> str:
        return self._keys.claim(move.schedule.id_at(move.schedule.due or 0.0))

    def _holds(self, move: Move) -> bool:
        """Whether what was read may still be so, and its claim is not over."""
        return self._clock.monotonic() - move.read_at <= LEASE / 2

    async def _unchanged(self, moves: Sequence[Move]) -> list[Move]:
        """Those whose records are as they were read; what has changed before its time is looked for again."""
        if all(move.changes is None for move in moves):
            return list(moves)
        changes = _version((await self._store.get([self._keys.changed])).get(self._keys.changed))
        keys = {move.name: self._keys.record(move.name) for move in moves if move.changes not in (None, changes)}
        found = await self._store.get(list(keys.values())) if keys else {}
        unchanged, changed = list[Move](), list[Move]()
        for move in moves:
            same = move.name not in keys or _version(found.get(keys[move.name])) == move.version
            (unchanged if same else changed).append(move)
        await self._give_back(changed)
        return unchanged

    async def _give_back(self, moves: Sequence[Move], *also: Write) -> None:
        """Have them taken anew, by whoever comes first."""
        held = [move for move in moves if self._holds(move)]
        if held:
            await self._store.write([*(Write(self._claim_of(move), None) for move in held), *also])
        for move in held:
            self._aside.pop(move.name, None)


def _version(entry: Entry | None) -> int:
    return 0 if entry is None else entry.version
