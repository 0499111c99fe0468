"""When a cron expression is next due, in a time zone whose clocks are moved.

cronsim reads the expression, and knows which days are in it. Its own walk is for a clock that moves by whole hours, not
over midnight, and is asked from before the change: elsewhere it finds times that are past, or misses some. So the walk
is ours. It looks at the clock on the wall; which moments that shows twice, or not at all, is found by PEP 495. What is
due then is as in Debian's cron(8):

- Fixed times, those without a star at the head of their minutes and hours, are due right after a gap that they are in,
  and the first time only in an hour that comes twice.
- Others follow the clock on the wall: nothing in the gap, and again in the hour that comes again.
- A clock that is moved by three hours or more is followed in any case.

Times are whole seconds since the epoch.
"""

from __future__ import annotations

import difflib
import math
from bisect import bisect_left
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from carteiro.errors import ConfigurationError

WORDS: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
FIELDS: Final = {
    "second": "0-59",
    "minute": "0-59",
    "hour": "0-23",
    "day of the month": "1-31, L for the last or LW for the last from Monday to Friday",
    "month": "1-12 or JAN-DEC",
    "day of the week": "0-7 or SUN-SAT (0 and 7 are Sunday), 5L for the last Friday or MON#1 for the first Monday",
}
CORRECTION: Final = timedelta(hours=3)
"""A clock that is moved by so much was wrong: cron knows no summer time of that size."""

_SECOND: Final = timedelta(seconds=1)
_DAY: Final = timedelta(days=1)
_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - the clock on the wall has no zone


class Expression:
    """A cron expression, read. It keeps no place, so that one serves every schedule and every thread."""

    def __init__(self, fields: list[str]) -> None:
        """Raises CronSimError for what is none."""
        read = CronSim(" ".join(fields), _EPOCH)
        self._seconds, self._minutes, self._hours = sorted(read.seconds), sorted(read.minutes), sorted(read.hours)
        self._months = read.months
        self._has = read.match_day
        self._first = time(self._hours[0], self._minutes[0], self._seconds[0])
        self._fixed = not any(field.startswith("*") for field in fields[:-3])

    @property
    def comes(self) -> bool:
        """Whether there is any day for it."""
        return self._day(_EPOCH.date()) is not None

    def after(self, moment: float, zone: tzinfo) -> int | None:
        """The first due time after `moment`."""
        now = math.floor(moment)
        wall = datetime.fromtimestamp(now, zone)
        due = self._due(wall.replace(tzinfo=None, fold=0), now, zone)
        early, late = _offsets(wall, zone)
        if late < early and not wall.fold and not self._at_once(early - late):
            # The clock will be put back to before `wall`: what it has shown already comes again, and may come first.
            back = _change(zone, now, _epoch(wall, late))
            again = self._due(_wall(back, zone) - _SECOND, back - 1, zone)
            due = min((found for found in (due, again) if found is not None), default=None)
        return due

    def _due(self, wall: datetime, floor: int, zone: tzinfo) -> int | None:
        """The first due time after `floor` of what the clock shows after `wall`."""
        while match := self._match(wall):
            wall = match
            early, late = _offsets(wall, zone)
            due = _epoch(wall, early)
            if early < late:  # in a gap
                due = _change(zone, _epoch(wall, late), due)
                if not self._at_once(late - early):
                    wall = _wall(due, zone) - _SECOND
                    continue
            elif due <= floor and not self._at_once(early - late):
                due = _epoch(wall, late)
            if due > floor:
                return due
        return None

    def _at_once(self, moved: timedelta) -> bool:
        """Whether what is due while the clock is moved is due once, and at once."""
        return self._fixed and moved < CORRECTION

    def _match(self, wall: datetime) -> datetime | None:
        """What matches first after `wall`, for a clock that nobody moves."""
        wall += _SECOND
        today = wall.date()
        if today.month in self._months and self._has(today) and (clock := self._time(wall)):
            return datetime.combine(today, clock)
        day = self._day(today + _DAY)
        return None if day is None else datetime.combine(day, self._first)

    def _time(self, wall: datetime) -> time | None:
        """The first time of the day from `wall` on."""
        for hour in self._hours[bisect_left(self._hours, wall.hour) :]:
            if hour > wall.hour:
                return self._first.replace(hour=hour)
            for minute in self._minutes[bisect_left(self._minutes, wall.minute) :]:
                if minute > wall.minute:
                    return self._first.replace(hour=hour, minute=minute)
                for second in self._seconds[bisect_left(self._seconds, wall.second) :]:
                    return time(hour, minute, second)
        return None

    def _day(self, day: date) -> date | None:
        """The first day from `day` on. In 50 years every weekday falls on every date, also on 29 February."""
        end = day.year + 50
        while day.year < end:
            if day.month not in self._months:
                day = (day.replace(day=28) + 4 * _DAY).replace(day=1)
            elif self._has(day):
                return day
            else:
                day += _DAY
        return None


@lru_cache(maxsize=1024)
def parse(text: str) -> Expression:
    """Raises ConfigurationError for what is no expression, or one that never comes."""
    fields = WORDS.get(text.lower(), text).upper().split()
    try:
        expression = Expression(fields)
    except CronSimError:
        expression = None
    if expression is None or not expression.comes:
        raise ConfigurationError(f'cron("{text}"): {_flaw(fields)}')
    return expression


@lru_cache(maxsize=1024)
def following(expression: str, tz: str, second: int) -> int | None:
    """What is due next after this second: the same for the many schedules that are due at two in the morning."""
    return parse(expression).after(second, zone(tz))


def _flaw(fields: list[str]) -> str:
    if fields and fields[0].startswith("@"):
        return f"`{fields[0].lower()}` is none of {', '.join(WORDS)}"
    if len(fields) not in (5, 6):
        return (
            f"{len(fields)} fields, where there are five: minute, hour, day of the month, month and day of the week, "
            "as in `0 2 * * MON-FRI`; or six, with the seconds first, as in `*/10 * * * * *`"
        )
    for place, (name, field) in enumerate(zip(list(FIELDS)[-len(fields) :], fields, strict=True)):
        alone = ["*"] * len(fields)
        alone[place] = field
        try:
            Expression(alone)
        except CronSimError:
            return (
                f"`{field}` is no {name}: give {FIELDS[name]}; "
                "a star, a list (1,3), a range from the lower to the higher (1-5) or steps (*/2)"
            )
    return "never comes: no day is all that it asks for, as on 30 February"


@lru_cache(maxsize=1024)
def zone(name: str) -> tzinfo:
    """Raises ConfigurationError for a zone that this machine does not know."""
    if name == "UTC":
        return UTC  # needs no database
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        known = available_timezones()
    if not known:
        raise ConfigurationError(
            f'tz="{name}": there is no time zone database on this machine: `pip install tzdata`, or install your '
            "system's package of that name; UTC needs none"
        )
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    raise ConfigurationError(
        f'tz="{name}" is no time zone: give a name such as "{near[0] if near else "America/Sao_Paulo"}", or "UTC"'
    )


def _offsets(wall: datetime, zone: tzinfo) -> tuple[timedelta, timedelta]:
    """The first and the second that hold when the clock shows `wall`.

    They are equal but for what it shows twice, where the first is greater, and never, where the first is less.
    """
    early = wall.replace(tzinfo=zone, fold=0).utcoffset()
    late = wall.replace(tzinfo=zone, fold=1).utcoffset()
    assert early is not None
    assert late is not None
    return early, late


def _epoch(wall: datetime, offset: timedelta) -> int:
    return (wall.replace(tzinfo=None) - offset - _EPOCH) // _SECOND


def _wall(moment: int, zone: tzinfo) -> datetime:
    return datetime.fromtimestamp(moment, zone).replace(tzinfo=None, fold=0)


def _change(zone: tzinfo, before: int, after: int) -> int:
    """The moment of the change between two: the first second of the new offset."""
    old = datetime.fromtimestamp(before, zone).utcoffset()
    span = range(before + 1, after + 1)
    return span[bisect_left(span, True, key=lambda at: datetime.fromtimestamp(at, zone).utcoffset() != old)]
