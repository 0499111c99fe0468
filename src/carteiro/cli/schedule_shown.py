"""What `carteiro schedule` prints of schedules: rows, JSON, and times."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any, Final, Literal

import msgspec

from carteiro.cli.output import age, cut, show_table
from carteiro.durations import shown
from carteiro.schedules.book import Schedules
from carteiro.schedules.status import ScheduleStatus

COLUMNS: Final = ("name", "schedule", "sends", "next", "last", "outcome", "late", "fired")
STYLES: Final = {
    "failed": "bold red", "expired": "red", "cancelled": "magenta", "skipped": "yellow", "succeeded": "green",
    "sent": "green", "running": "cyan", "paused": "yellow", "not started": "yellow", "ended": "dim",
}  # fmt: skip
SOON: Final = 3600.0
"""For so many seconds from now times are shown to the second."""
NOW: Final = 2.0
"""Seconds after its time in which a schedule is on its way, and after which it is shown that nobody has fired it."""

State = Literal["active", "paused", "ended", "new"]
"""`new` is one of the code that nobody has fired yet, `ended` a one-shot that is over."""


class Sighted(msgspec.Struct, frozen=True, eq=False):
    """A schedule, with whose it is."""

    app: str
    book: Schedules
    status: ScheduleStatus
    state: State

    def next(self, now: float) -> str:
        if self.status.next is not None:
            return when(self.status.next.timestamp(), now, zone_of(self.status.tz))
        return "not started" if self.state == "new" else self.state

    def as_json(self) -> dict[str, Any]:
        status, last = self.status, self.status.last
        return {
            "name": status.name,
            "app": self.app,
            "schedule": status.spec,
            "tz": status.tz,
            "sends": status.what,
            "state": self.state,
            "in_code": status.in_code,
            "next": None if status.next is None else status.next.timestamp(),
            "fired": status.count,
            "last": None
            if last is None
            else {
                "due": last.due.timestamp(),
                "at": last.at.timestamp(),
                "lateness": last.lateness,
                "id": last.id or None,
                "outcome": last.outcome,
            },
        }


def show_schedules(found: Sequence[Sighted], now: float) -> None:
    several = ("app",) if len({one.app for one in found}) > 1 else ()
    rows = [(*((one.app,) if several else ()), *_row(one, now)) for one in found]
    show_table((*several, *COLUMNS), rows, STYLES)


def _row(one: Sighted, now: float) -> Sequence[object]:
    status, last = one.status, one.status.last
    ago = outcome = late = None
    if last is not None:
        ago, outcome = f"{age(now - last.at.timestamp())} ago", last.outcome
        late = None if outcome == "skipped" else shown(max(0.0, last.lateness))
    return status.name, status.spec, cut(status.what, 60), one.next(now), ago, outcome, late, status.count


def show_times(one: Sighted, times: Sequence[datetime], now: float) -> None:
    """A line each, in the schedule's zone, and in the reader's where that is another."""
    zone = zone_of(one.status.tz)
    here = [time.astimezone() for time in times]
    there = [time.astimezone(zone) for time in times]
    # Those of one that is due more than once a second need more than seconds.
    precision = "seconds" if len({int(time.timestamp()) for time in times}) == len(times) else "milliseconds"
    waits = [wait(time.timestamp(), now) for time in times]
    if any(a.utcoffset() != b.utcoffset() for a, b in zip(here, there, strict=True)):
        columns = ("when", one.status.tz or "", "local time")
        rows = [(w, _full(a, precision), _full(b, precision)) for w, a, b in zip(waits, there, here, strict=True)]
        show_table(columns, rows)
    else:
        show_table(("when", "due"), [(w, _full(time, precision)) for w, time in zip(waits, there, strict=True)])


def zone_of(tz: str | None) -> tzinfo | None:
    """In which times are told: that of a cron is its own, None is the reader's."""
    from carteiro.schedules.cron import zone

    return None if tz is None else zone(tz)


def when(at: float, now: float, zone: tzinfo | None = None) -> str:
    """`in 3m 12s (02:00 -03)`, with the day where it is another. In local time without a zone; times are seconds since
    the epoch.
    """
    there, here = (datetime.fromtimestamp(time, UTC).astimezone(zone) for time in (at, now))
    text = f"{there:%H:%M:%S}" if there.second and at - now < SOON else f"{there:%H:%M}"
    day = "" if there.date() == here.date() else f"{there:%a %Y-%m-%d} "
    return f"{wait(at, now)} ({day}{text} {there:%Z})"


def wait(at: float, now: float) -> str:
    if at >= now:
        return f"in {age(at - now)}"
    return "now" if now - at < NOW else f"due for {age(now - at)}"


def _full(time: datetime, precision: str) -> str:
    return f"{time:%a} {time.replace(tzinfo=None).isoformat(' ', precision)} {time:%Z}"
