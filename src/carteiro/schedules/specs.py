"""When a schedule is due: `cron`, `every` and `at`, as values that a record can hold.

Times are seconds since the epoch, lengths are seconds. A spec knows no clock and keeps no place: asked with the same
moment, every process finds the same due time, to the last bit. So a due time is the name of a firing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

import msgspec

from carteiro import durations
from carteiro.durations import Duration
from carteiro.errors import ConfigurationError

SHORTEST: Final = 0.1
"""The least that `every` may be."""

_UNITS: Final = {86400.0: "d", 3600.0: "h", 60.0: "min"}


class Cron(msgspec.Struct, frozen=True, tag="cron"):
    """Due when the clock of the zone `tz` shows what the expression says. Due times are whole seconds."""

    expression: str
    tz: str = "UTC"
    jitter: float = 0.0

    def after(self, moment: float, anchor: float) -> float | None:
        """The first due time after `moment`; `anchor` is for others.

        Raises ConfigurationError if the zone is not known on this machine.
        """
        from carteiro.schedules.cron import following

        return following(self.expression, self.tz, math.floor(moment))

    def __str__(self) -> str:
        return f"{self.expression} {self.tz}{_shown(self.jitter)}"


class Every(msgspec.Struct, frozen=True, tag="every"):
    """Due `seconds` after its anchor, and then again and again, on the clock that is never moved."""

    seconds: float
    jitter: float = 0.0

    def after(self, moment: float, anchor: float) -> float:
        """The first due time after `moment` of those that are counted from `anchor`, which is none itself."""
        count = max(1, math.floor((moment - anchor) / self.seconds))
        # The division may be off by its rounding. What is due is a product, however long the schedule has run.
        while (due := anchor + count * self.seconds) <= moment:
            count += 1
        return due

    def __str__(self) -> str:
        return f"every {_length(self.seconds)}{_shown(self.jitter)}"


class At(msgspec.Struct, frozen=True, tag="at"):
    """Due once."""

    when: float
    jitter: float = 0.0

    def after(self, moment: float, anchor: float) -> float | None:
        """`when`, if that is after `moment`; `anchor` is for others."""
        return self.when if self.when > moment else None

    def __str__(self) -> str:
        when = datetime.fromtimestamp(self.when, UTC).replace(tzinfo=None).isoformat()
        return f"at {when}Z{_shown(self.jitter)}"


Spec = Cron | Every | At


def cron(expression: str, *, tz: str | tzinfo | None = None, jitter: Duration = 0) -> Cron:
    """Due when the clock in `tz` shows it: `cron("0 2 * * *", tz="America/Sao_Paulo")`; without `tz`, in UTC.

    Five fields as in crontab(5), six with the seconds first, or a word such as `@daily`. Daylight saving is dealt with
    as Debian's cron does. `jitter` is the most that a firing may be late. Raises ConfigurationError for what is no
    expression or never comes, and for an unknown zone.
    """
    from carteiro.schedules.cron import parse, zone

    spec = Cron(" ".join(expression.split()), "UTC" if tz is None else str(tz), _jitter(jitter))
    parse(spec.expression)
    zone(spec.tz)
    return spec


def every(
    length: Duration | None = None,
    /,
    *,
    days: float = 0,
    hours: float = 0,
    minutes: float = 0,
    seconds: float = 0,
    milliseconds: float = 0,
    jitter: Duration = 0,
) -> Every:
    """Due at equal distances of at least 100 ms: `every(seconds=10)`, `every("5m")`, `every(timedelta(hours=1))`.

    A day is 24 hours; for each midnight in a zone, take `cron`. `jitter` is the most that a firing may be late, and at
    most the distance. Raises ConfigurationError otherwise.
    """
    parts = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds, milliseconds=milliseconds)
    if (length is None) == (not parts):
        raise ConfigurationError('every(): give one length, as in every(seconds=10), every("5m") or every(0.5)')
    spec = Every(durations.seconds(parts if length is None else length), _jitter(jitter))
    if not SHORTEST <= spec.seconds < math.inf:
        raise ConfigurationError(
            f"every({spec.seconds:g}): the least is 0.1 seconds; if that is too seldom, let each firing do several"
        )
    if spec.jitter > spec.seconds:
        raise ConfigurationError(
            f"`{spec}`: with that, firings would overtake one another; give a jitter of at most {spec.seconds:g}"
        )
    return spec


def at(when: datetime, *, jitter: Duration = 0) -> At:
    """Due once: `at(datetime(2027, 1, 1, tzinfo=UTC))`. Raises ConfigurationError for a time without a zone."""
    if not isinstance(when, datetime) or when.utcoffset() is None:
        raise ConfigurationError(
            f"at({when!r}): give a datetime with a time zone, as in "
            'at(datetime(2027, 1, 1, 9, 30, tzinfo=ZoneInfo("America/Sao_Paulo"))) or at(datetime.now(UTC) + delay)'
        )
    return At(when.timestamp(), _jitter(jitter))


def dues(spec: Spec, moment: float, anchor: float) -> Iterator[float]:
    """Its due times after `moment`, one after another."""
    while (due := spec.after(moment, anchor)) is not None:
        yield due
        moment = due


def jittered(spec: Spec, name: str, due: float) -> float:
    """When the firing of schedule `name` that is due at `due` goes: up to `spec.jitter` seconds later.

    How much is drawn by name and due time alone, so that all processes agree.
    """
    # A whole number comes back from the store as a float.
    return due + spec.jitter * random.Random(f"{name} {float(due)!r}").random() if spec.jitter else due


def _jitter(value: Duration) -> float:
    length = durations.seconds(value)
    if not 0 <= length < math.inf:
        raise ConfigurationError(
            f"jitter={value!r}: give the seconds by which a firing may be late, or text such as 10s"
        )
    return length


def _length(seconds: float) -> str:
    """Exact, as `durations.shown` is not: `100 ms`, `1.5 s`, `90 min`."""
    if seconds < 1:
        return f"{seconds * 1000:.10g} ms"
    for size, unit in _UNITS.items():
        if seconds % size == 0:
            return f"{seconds / size:.10g} {unit}"
    return f"{seconds:.10g} s"


def _shown(jitter: float) -> str:
    return f", jitter {_length(jitter)}" if jitter else ""
