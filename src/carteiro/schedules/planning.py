"""Which due times of a schedule are fired now: on time, late, or missed.

A firing that is up to `GRACE` late is late, and fired: a process has died, or the broker was away for a moment. Where
the oldest is later than that, everything was down, and the schedule's misfire policy says what of the *backlog*, all
the due times that have passed, is fired:

    "once"   the latest of them
    "skip"   the latest of them if it is within the grace, since that one is only late
    "all"    each of them

Those that are older than the schedule's `max_age` are never fired.
"""

from __future__ import annotations

from typing import Final

import msgspec

from carteiro.schedules.records import Schedule

GRACE: Final = 60.0
"""Seconds."""
AT_ONCE: Final = 500
"""Due times of one schedule that are fired in one step."""


class Plan(msgspec.Struct, frozen=True):
    """What is fired, oldest first, and what is due next: in the past where there was more than fits into one step."""

    dues: tuple[float, ...]
    next: float | None


def planned(schedule: Schedule, now: float) -> Plan:
    """Of a schedule that is due. How late it is counts from the end of its jitter."""
    first, definition = schedule.due, schedule.definition
    assert first is not None
    if definition.max_age is not None and now - schedule.with_jitter(first) > definition.max_age:
        young = _young(schedule, first, now, definition.max_age)
        if young is None or schedule.with_jitter(young) > now:
            return Plan((), young)
        first = young
    if schedule.queued is not None:  # it has waited for the one before, and not because all was down
        return Plan((first,), schedule.after(first))
    if now - schedule.with_jitter(first) > GRACE and definition.misfire != "all":
        latest = _latest(schedule, first, now)
        fired = definition.misfire == "once" or now - schedule.with_jitter(latest) <= GRACE
        return Plan((latest,) if fired else (), schedule.after(latest))
    # That the first is due is known: its entry in the index is in milliseconds, which can be a moment before it.
    dues, due = [first], schedule.after(first)
    while due is not None and schedule.with_jitter(due) <= now and len(dues) < AT_ONCE:
        dues.append(due)
        due = schedule.after(due)
    return Plan(tuple(dues), due)


def _young(schedule: Schedule, first: float, now: float, max_age: float) -> float | None:
    """Its first due time after `first` that is not too old."""
    due = schedule.after(max(first, now - max_age - schedule.definition.spec.jitter))
    while due is not None and now - schedule.with_jitter(due) > max_age:
        due = schedule.after(due)
    return due


def _latest(schedule: Schedule, first: float, now: float) -> float:
    """Its last due time up to now, of those from `first` on: looked for from now backwards, in longer and longer steps,
    since there may be millions between the two.
    """
    back = GRACE + schedule.definition.spec.jitter
    while now - back > first:
        due = schedule.after(now - back)
        if due is not None and schedule.with_jitter(due) <= now:
            first = due
            break
        back *= 4
    while (due := schedule.after(first)) is not None and schedule.with_jitter(due) <= now:
        first = due
    return first
