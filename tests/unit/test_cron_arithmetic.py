"""Cron's arithmetic in every zone and over 20 years, against two others that share nothing with it.

Around a change of the clock the other is `daemon`, below: it does what Debian's cron does, minute by minute. Elsewhere,
where a match may be years away, it is croniter. At a change croniter cannot serve: what of a fixed time falls in a gap,
or in an hour that comes twice, it treats otherwise than Debian does. Nor does it have `LW`. And where both days are
given, it takes either though one begins with a star, where Debian takes both, and finds nothing for some with an `L`.
"""

from __future__ import annotations

import calendar
from bisect import bisect_left
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from functools import cache
from itertools import pairwise
from typing import NamedTuple
from zoneinfo import ZoneInfo, available_timezones

import pytest
from croniter import croniter
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from carteiro.errors import ConfigurationError
from carteiro.schedules.cron import parse
from carteiro.schedules.specs import Cron

BEGIN = int(datetime(2007, 1, 1, tzinfo=UTC).timestamp())
END = int(datetime(2027, 1, 1, tzinfo=UTC).timestamp())
MINUTE, HOUR, DAY = 60, 3600, 86400

ZONES = sorted(available_timezones())


# -- expressions, as text and as what they mean ------------------------------------------------------------------


class Field(NamedTuple):
    text: str
    values: frozenset[int]


class Days(NamedTuple):
    text: str
    croniter: str
    on: Callable[[date], bool]


class Expression(NamedTuple):
    seconds: Field | None
    minutes: Field
    hours: Field
    month: Field
    monthday: Days
    weekday: Days

    def text(self, *, croniter: bool = False) -> str:
        monthday, weekday = (days.croniter if croniter else days.text for days in (self.monthday, self.weekday))
        fields = [self.minutes.text, self.hours.text, monthday, self.month.text, weekday]
        return " ".join([self.seconds.text, *fields] if self.seconds else fields)

    @property
    def fixed(self) -> bool:
        return not any(f.text.startswith("*") for f in (self.seconds, self.minutes, self.hours) if f)

    def at(self, wall: datetime) -> bool:
        """Whether it names this minute."""
        days = [days.on(wall.date()) for days in (self.monthday, self.weekday)]
        both = self.monthday.text.startswith("*") or self.weekday.text.startswith("*")
        return (
            wall.minute in self.minutes.values
            and wall.hour in self.hours.values
            and wall.month in self.month.values
            and (all(days) if both else any(days))
        )


def fields(low: int, high: int, names: str = "") -> st.SearchStrategy[Field]:
    words = names.split()

    def word(value: int) -> str:
        return words[value - low] if words and value % 2 else str(value)

    def span(ends: list[int], step: int) -> Field:
        first, last = sorted(ends)
        return Field(f"{word(first)}-{word(last)}" + f"/{step}" * (step > 1), frozenset(range(first, last + 1, step)))

    values = st.integers(low, high)
    star = st.just(Field("*", frozenset(range(low, high + 1))))
    steps = st.integers(1, high).map(lambda step: Field(f"*/{step}", frozenset(range(low, high + 1, step))))
    single = values.map(lambda value: Field(word(value), frozenset([value])))
    spans = st.builds(span, st.lists(values, min_size=2, max_size=2, unique=True), st.integers(1, 4))
    lists = st.lists(single | spans, min_size=2, max_size=3).map(
        lambda parts: Field(",".join(part.text for part in parts), frozenset().union(*(part.values for part in parts)))
    )
    return st.one_of(star, steps, single, spans, lists)


def last_of_month(day: date) -> int:
    return calendar.monthrange(day.year, day.month)[1]


def last_workday(day: date) -> bool:
    rest = [day.replace(day=number) for number in range(day.day, last_of_month(day) + 1)]
    return [later.weekday() < 5 for later in rest] == [True] + [False] * (len(rest) - 1)


def weekday(day: date) -> int:
    return day.isoweekday() % 7


every_day = Days("*", "*", lambda day: True)
every_month = Field("*", frozenset(range(1, 13)))
monthdays = st.one_of(
    st.just(every_day),
    fields(1, 31).map(lambda field: Days(field.text, field.text, lambda day: day.day in field.values)),
    st.just(Days("L", "L", lambda day: day.day == last_of_month(day))),
    st.just(Days("LW", "", last_workday)),
)
weekdays = st.one_of(
    st.just(every_day),
    fields(0, 6, "SUN MON TUE WED THU FRI SAT").map(
        lambda field: Days(field.text, field.text, lambda day: weekday(day) in field.values)
    ),
    st.just(Days("7", "7", lambda day: weekday(day) == 0)),
    st.integers(0, 6).map(
        lambda n: Days(f"{n}L", f"L{n}", lambda day: weekday(day) == n and day.day + 7 > last_of_month(day))
    ),
    st.tuples(st.integers(0, 6), st.integers(1, 5)).map(
        lambda nth: Days(
            f"{nth[0]}#{nth[1]}",
            f"{nth[0]}#{nth[1]}",
            lambda day: weekday(day) == nth[0] and (day.day + 6) // 7 == nth[1],
        )
    ),
)
months = fields(1, 12, "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC")
expressions = st.builds(
    Expression, st.none() | fields(0, 59), fields(0, 59), fields(0, 23), months, monthdays, weekdays
)
few = [Field("0", frozenset([0])), Field("7,45-46", frozenset([7, 45, 46])), Field("*/20", frozenset([0, 20, 40]))]
early = st.lists(st.integers(0, 4), min_size=1).map(lambda hours: Field(",".join(map(str, hours)), frozenset(hours)))
often = st.builds(
    lambda seconds, minutes, hours, days: Expression(seconds, minutes, hours, every_month, *days),
    st.none() | st.sampled_from(few),
    fields(0, 59),
    early | fields(0, 23),
    st.just((every_day, every_day)) | st.tuples(monthdays, weekdays),
)


# -- zones and their changes -------------------------------------------------------------------------------------


def offset(zone: ZoneInfo, moment: int) -> int:
    found = datetime.fromtimestamp(moment, zone).utcoffset()
    assert found is not None
    return int(found.total_seconds())


@cache
def changes(name: str) -> list[int]:
    """When the clock of a zone is moved. It is looked at each week: no summer time was shorter, nor a pause in one."""
    zone, found = ZoneInfo(name), []
    weeks = range(BEGIN, END, 7 * DAY)
    for (begin, old), (end, new) in pairwise((at, datetime.fromtimestamp(at, zone).utcoffset()) for at in weeks):
        if old != new:
            span = range(begin, end + 1)
            found.append(span[bisect_left(span, True, key=lambda at: offset(zone, at) == offset(zone, span[-1]))])
    return found


def daemon(expression: Expression, zone: ZoneInfo, begin: int, end: int) -> Iterator[int]:
    """What Debian's cron starts from `begin`, a whole minute, to `end`; what it starts for one minute counts once.

    It wakes up each minute and compares the clock with its own, the virtual minute, which counts on when the clock is
    moved. A clock that is ahead by less than three hours: what goes by the clock is started, and of the rest all that
    was skipped. One that is behind by less: only what goes by the clock, until the virtual minute is reached.
    """
    within = [0] if expression.seconds is None else sorted(expression.seconds.values)
    virtual = None
    for now in range(begin, end, MINUTE):
        clock = (now + offset(zone, now)) // MINUTE
        moved = 0 if virtual is None else clock - virtual - 1
        skipped: list[int] = []
        waits = False
        if 0 < moved < 180:
            skipped = list(range(clock - moved, clock))
        elif -180 < moved < 0:
            waits = expression.fixed
        virtual = virtual if -180 < moved < 0 else clock
        if expression.fixed and any(expression.at(shown(minute)) for minute in skipped):
            yield now
        if not waits and expression.at(shown(clock)):
            yield from (now + second for second in within)


def shown(clock: int) -> datetime:
    """What the clock on the wall shows; it has no zone."""
    return datetime.fromtimestamp(clock * MINUTE, UTC).replace(tzinfo=None)


def dues(expression: Expression, name: str, moment: float, end: int) -> Iterator[int]:
    spec = Cron(expression.text(), name)
    while (due := spec.after(moment, 0.0)) is not None and due < end:
        assert due > moment
        assert due == int(due)
        yield int(due)
        moment = due


def comes(expression: Expression) -> bool:
    """Whether it does at all: `LW` on a Sunday does not."""
    try:
        parse(expression.text())
    except ConfigurationError:
        return False
    return True


def check_against_the_daemon(expression: Expression, name: str, moment: float, length: int) -> None:
    """What is due in `length` seconds after `moment`. The daemon starts four hours before, to know the past."""
    begin, end = int(moment) // MINUTE * MINUTE - 4 * HOUR, (int(moment) + length) // MINUTE * MINUTE
    zone = ZoneInfo(name)
    expected = sorted({due for due in daemon(expression, zone, begin, end) if due > moment})
    found = list(dues(expression, name, moment, end))
    differ = sorted({*expected} ^ {*found})[:5]
    local = [(datetime.fromtimestamp(due, zone).isoformat(), due in expected) for due in differ]
    assert not differ, f"{expression.text()} in {name} after {moment}: is the daemon alone to start at {local}?"
    assert found == expected, "in order, and each once"


def check_against_croniter(expression: Expression, name: str, moment: int) -> None:
    assume(expression.monthday.croniter and comes(expression))
    days = {expression.monthday.croniter, expression.weekday.croniter}
    assume("*" in days or not any(mark in text for text in days for mark in "*L#"))
    spec = Cron(expression.text(), name)
    zone = ZoneInfo(name)
    due = spec.after(moment, 0.0)
    assert due is not None
    assume(len({offset(zone, int(at) + near) for at in (moment, due) for near in (-DAY, 0, DAY)}) == 1)
    other = croniter(expression.text(croniter=True), datetime.fromtimestamp(moment, zone), second_at_beginning=True)
    assert due == other.get_next(float)


zones = st.sampled_from(ZONES)


@st.composite
def around_changes(draw: st.DrawFn) -> tuple[str, float]:
    """A zone whose clock is moved at times, and a moment before or after that."""
    name = draw(st.sampled_from([name for name in ZONES if changes(name)]))
    near = draw(st.integers(-10 * HOUR, 4 * HOUR).map(float) | st.floats(-10 * HOUR, 4 * HOUR))
    return name, draw(st.sampled_from(changes(name))) + near


# -- properties --------------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(expression=often, place=around_changes())
def test_around_a_change_of_the_clock_it_is_due_when_debians_cron_starts_it(
    expression: Expression, place: tuple[str, float]
):
    assume(comes(expression))
    check_against_the_daemon(expression, *place, length=12 * HOUR)


@settings(max_examples=300)
@given(expression=expressions, name=zones, moment=st.integers(BEGIN, END))
def test_away_from_changes_of_the_clock_it_is_due_when_croniter_says(expression: Expression, name: str, moment: int):
    check_against_croniter(expression, name, moment)


@pytest.mark.parametrize("text", ["30 2 * * *", "0,30 0-3,23 * * *", "*/30 * * * *", "*/30 0,2,23 * * *"])
def test_each_kind_of_change_that_there_was_in_20_years_is_as_debians_cron_has_it(text: str):
    minutes, hours = text.split()[:2]
    expression = Expression(None, read(minutes, 60), read(hours, 24), every_month, every_day, every_day)
    kinds = {kind(name, change): (name, change) for name in ZONES for change in changes(name)}
    assert len(kinds) > 30
    for name, change in kinds.values():
        check_against_the_daemon(expression, name, change - 3 * HOUR - 1, length=7 * HOUR)


def kind(name: str, change: int) -> tuple[int, int]:
    """By how much the clock was moved, and when in the day."""
    old, new = offset(ZoneInfo(name), change - 1), offset(ZoneInfo(name), change)
    return new - old, (change + old) % DAY


def read(text: str, count: int) -> Field:
    """Of a star, its steps, numbers and ranges in a list."""
    if text.startswith("*"):
        return Field(text, frozenset(range(0, count, int(text[2:] or 1))))
    spans = [part.split("-") for part in text.split(",")]
    return Field(text, frozenset(value for span in spans for value in range(int(span[0]), int(span[-1]) + 1)))


@pytest.mark.soak
@settings(max_examples=20_000)
@given(expression=often, place=around_changes())
def test_soak_around_changes(expression: Expression, place: tuple[str, float]):
    assume(comes(expression))
    check_against_the_daemon(expression, *place, length=40 * HOUR)


@pytest.mark.soak
@settings(max_examples=50_000)
@given(expression=expressions, name=zones, moment=st.integers(BEGIN, END))
def test_soak_away_from_changes(expression: Expression, name: str, moment: int):
    check_against_croniter(expression, name, moment)
