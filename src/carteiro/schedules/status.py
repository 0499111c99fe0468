"""How it stands with schedules, as users see it: when they are due, and how the last firing went."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final

import msgspec

from carteiro.ports.store import Entry, Store
from carteiro.schedules.declaring import Spec
from carteiro.schedules.endings import outcome, outcome_key
from carteiro.schedules.records import Schedule
from carteiro.schedules.specs import Cron, jittered

AT_ONCE: Final = 500
"""Records in one read."""


class Fired(msgspec.Struct, frozen=True):
    """A firing: when it was due (with its jitter) and sent, the id of what was sent, and how it stands with that.

    `outcome` is `"sent"` for a message, `"skipped"` where the one before was not over, and for a task or a workflow its
    status. `lateness` is in seconds.
    """

    due: datetime
    at: datetime
    id: str
    outcome: str

    @property
    def lateness(self) -> float:
        return (self.at - self.due).total_seconds()


class ScheduleStatus(msgspec.Struct, frozen=True):
    """How it stands with a schedule. `spec` and `what` are in words; `next` is None while it is paused, or at its
    end.
    """

    name: str
    spec: str
    what: str
    next: datetime | None
    paused: bool
    in_code: bool
    count: int
    last: Fired | None = None
    tz: str | None = None
    """Of a cron: its time zone."""


async def statuses(store: Store, schedules: Iterable[Schedule]) -> list[ScheduleStatus]:
    """One each, in their order; `store` says how what they have sent has ended."""
    found, entries = [*schedules], dict[str, Entry]()
    ended = (outcome_key(one.definition.what, one.last.id) for one in found if one.last is not None)
    keys = [key for key in ended if key is not None]
    for start in range(0, len(keys), AT_ONCE):
        entries |= await store.get(keys[start : start + AT_ONCE])
    return [_status(one, entries) for one in found]


def _status(schedule: Schedule, entries: Mapping[str, Entry]) -> ScheduleStatus:
    definition, last, fires_at = schedule.definition, schedule.last, schedule.fires_at
    fired = None
    if last is not None:
        key = outcome_key(definition.what, last.id)
        how = outcome(definition.what, last, None if key is None else entries.get(key))
        due = jittered(definition.spec, schedule.name, last.due)
        # One that somebody has fired by hand has no jitter, and was sent before it would have been over.
        fired = Fired(moment(last.due if due > last.at else due), moment(last.at), last.id, how)
    return ScheduleStatus(
        schedule.name, str(definition.spec), definition.what.label, None if fires_at is None else moment(fires_at),
        schedule.paused, schedule.in_code, schedule.count, fired, tz_of(definition.spec),
    )  # fmt: skip


def tz_of(spec: Spec) -> str | None:
    return spec.tz if isinstance(spec, Cron) else None


def moment(seconds: float) -> datetime:
    """Of seconds since the epoch, in UTC."""
    return datetime.fromtimestamp(seconds, UTC)
