"""A schedule's way from one due time to the next: what is sent on it, and how its record is moved when that is safe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from carteiro.message import Write
from carteiro.ports.store import Store
from carteiro.schedules.planning import planned
from carteiro.schedules.records import Keys, Last, Schedule, pack, schedule_of

STEP: Final = 100
"""Records that are moved at once: handlers of what was sent get their turn between."""


class Firing(msgspec.Struct, frozen=True):
    """One schedule at one due time, to be sent under this id."""

    schedule: Schedule
    due: float
    id: str


class Move(msgspec.Struct):
    """A schedule on its way to its next due time, as it was read.

    `at` is when its firings are to be sent, and `hint` the entry of the index that says so. It was read at `read_at` by
    the monotonic clock. `changes` is the version of what tells of changes, where it was read before its time.
    """

    hint: str
    hint_version: int
    schedule: Schedule
    version: int
    at: float
    read_at: float
    changes: int | None
    firings: tuple[Firing, ...]
    next: Schedule

    @property
    def name(self) -> str:
        return self.schedule.name


def move_of(
    hint: str, hint_version: int, schedule: Schedule, version: int,
    *, at: float, read_at: float, changes: int | None, is_busy: bool,
) -> Move:  # fmt: skip
    """Of a schedule that is due at `at`. Raises ConfigurationError for a zone that this machine does not know."""
    plan, overlap = planned(schedule, at), schedule.definition.overlap
    dues, following = plan.dues, plan.next
    if overlap != "allow" and len(dues) > 1:
        if overlap == "queue":
            following = dues[1]
        dues = dues[:1]
    last, queued = schedule.last, None
    if is_busy and dues:
        last, dues = Last(dues[0], at, "" if last is None else last.id, skipped=True), ()
    if overlap == "queue" and following is not None and following <= at:
        queued = following
    moved = msgspec.structs.replace(schedule, due=following, last=last, queued=queued)
    firings = tuple(Firing(schedule, due, schedule.id_at(due)) for due in dues)
    return Move(hint, hint_version, schedule, version, at, read_at, changes, firings, moved)


class Mover:
    """Moves the records of one app's schedules."""

    def __init__(self, keys: Keys, store: Store) -> None:
        self._keys = keys
        self._store = store

    async def move(self, moves: Sequence[Move], sent: Mapping[str, str], now: float) -> None:
        """Move the records on; who has changed one meanwhile has it moved as it is now. `sent` is as `Send` has it."""
        for start in range(0, len(moves), STEP):
            some, writes = moves[start : start + STEP], list[Write]()
            for move in some:
                writes += self._writes(move, move.schedule, move.version, sent, now)
            done = await self._store.write([*writes, Write(self._keys.changed, b"")])
            for move, moved in zip(some, done[:-1:3], strict=True):
                if not moved:
                    await self._move_again(move, sent, now)

    async def _move_again(self, move: Move, sent: Mapping[str, str], now: float) -> None:
        key, was = self._keys.record(move.name), move.schedule
        while (entry := (await self._store.get((key,))).get(key)) is not None:
            current = schedule_of(entry)
            if (current.token, current.due) != (was.token, was.due):
                return  # it was given other times
            if current.definition.spec != was.definition.spec:
                move.next = msgspec.structs.replace(move.next, due=current.after(now), queued=None)
            writes = self._writes(move, current, entry.version, sent, now)
            if (await self._store.write([*writes, Write(self._keys.changed, b"")]))[0]:
                return

    def _writes(
        self, move: Move, current: Schedule, version: int, sent: Mapping[str, str], now: float
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
