"""What the store keeps of schedules: a record of each, and an index of when they are due.

    schedule:<app>:<name>            the record: what it is, when it is due next, how the last firing went
    due:<app>:<time>:<name>          an entry of the index, empty: at this time the schedule may be due
    fired:<app>:<name>@<due>         a claim: somebody fires this one; it ends by itself
    code:<app>                       the names of those that are in the code
    bell:<app>                       written when something is due sooner than those who wait can know
    changed:<app>                    written with each record: while its version stays, what was read is still so

The record is the authority, and changes only over the version that was read. An entry of the index is a hint: one that
the record does not bear out is deleted by whoever meets it, and whoever moves a record puts the new entry there in the
same commit or before it. So a crash can leave a hint too many, and none too few.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal
from urllib.parse import quote, unquote

import msgspec

from carteiro.engine.composing import Draft
from carteiro.errors import BrokerCorrupted
from carteiro.ports.store import Entry, Store
from carteiro.schedules.specs import At, Cron, Every, jittered

Misfire = Literal["skip", "once", "all"]
Overlap = Literal["allow", "skip", "queue"]
Kind = Literal["message", "task", "run"]

GONE_AFTER: Final = 86_400.0
"""Seconds for which the record of a one-shot that was added while running is kept after it has fired."""


class What(msgspec.Struct, frozen=True):
    """What a schedule sends. `label` is it in a few words; `lock` is of a unique task, and `window` that lock's."""

    kind: Kind
    draft: Draft
    label: str
    task: str = ""
    lock: str | None = None
    window: float | None = None


class Last(msgspec.Struct, frozen=True):
    """The last firing: when it was due and when it was sent (seconds since the epoch), and the id of what was sent.

    `skipped` says that it was not sent, for the one before was not over.
    """

    due: float
    at: float
    id: str
    skipped: bool = False


class Definition(msgspec.Struct, frozen=True):
    """What the user says of a schedule. `max_age` is in seconds."""

    spec: Cron | Every | At
    what: What
    misfire: Misfire = "once"
    max_age: float | None = None
    overlap: Overlap = "allow"


class Schedule(msgspec.Struct, frozen=True):
    """A schedule as the store has it.

    `token` is its own from its creation on, and part of the ids of what it sends: one that is removed and added again
    under its name is another. `anchor` is what an `every` counts from. `due` is the next time that was not fired yet,
    without jitter; None where there is none any more. From `queued` on, a due time, firings have waited for the one
    before to be over.
    """

    name: str
    token: str
    definition: Definition
    in_code: bool
    anchor: float
    due: float | None
    paused: bool = False
    last: Last | None = None
    queued: float | None = None
    count: int = 0
    """How often it has fired."""

    @property
    def fires_at(self) -> float | None:
        """The time of its next firing, with its jitter; None while it is paused or has none."""
        return None if self.due is None or self.paused else self.with_jitter(self.due)

    def with_jitter(self, due: float) -> float:
        """When the firing that is due at `due` goes."""
        return jittered(self.definition.spec, self.name, due)

    @property
    def ttl(self) -> float | None:
        """Seconds for which its record is kept: None, unless it was added while running and never fires again."""
        return GONE_AFTER if self.due is None and not self.in_code else None

    def after(self, moment: float) -> float | None:
        return self.definition.spec.after(moment, self.anchor)

    def id_at(self, due: float) -> str:
        """The id of what is sent at this due time: the same in every process."""
        return f"{self.name}@{round(due * 1000)}-{self.token}"


_RECORDS: Final = "schedule:"


class Keys:
    """The keys of one app's schedules."""

    def __init__(self, app: str) -> None:
        own = quote(app, safe="-_.~")
        self.records: Final = f"{_RECORDS}{own}:"
        self.dues: Final = f"due:{own}:"
        self.bell: Final = f"bell:{own}"
        self.changed: Final = f"changed:{own}"
        self.in_code: Final = f"code:{own}"
        self._claims = f"fired:{own}:"

    def record(self, name: str) -> str:
        return self.records + name

    def claim(self, id: str) -> str:
        return self._claims + id

    def due(self, schedule: Schedule) -> str | None:
        """Its entry in the index, if it is to have one."""
        at = schedule.fires_at
        return None if at is None else f"{self.dues}{_time(math.ceil(at * 1000))}:{schedule.name}"

    def until(self, moment: float) -> str:
        """What all entries for this moment and those before are less than."""
        return f"{self.dues}{_time(math.floor(moment * 1000))}~"

    def read(self, key: str) -> tuple[float, str]:
        """When a schedule may be due, and its name, as an entry of the index says."""
        time, _, name = key.removeprefix(self.dues).partition(":")
        return int(time) / 1000, name


def _time(milliseconds: int) -> str:
    """Of one length, so that keys are ordered as times are."""
    return f"{max(0, milliseconds):015d}"


pack = msgspec.msgpack.Encoder().encode

_schedule = msgspec.msgpack.Decoder(Schedule).decode


def schedule_of(entry: Entry) -> Schedule:
    """Raises BrokerCorrupted for what is no schedule."""
    try:
        return _schedule(entry.value)
    except msgspec.DecodeError as error:
        raise BrokerCorrupted(f"a schedule in the store cannot be read ({error}): restore the store") from error


async def apps_in(store: Store) -> list[str]:
    """The names of the apps that have schedules there."""
    return sorted({unquote(key.split(":", 2)[1]) for key in await store.scan(_RECORDS)})


def schedules_of(entries: Mapping[str, Entry]) -> list[Schedule]:
    return [schedule_of(entry) for entry in entries.values()]
