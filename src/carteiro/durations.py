"""Lengths of time as users write them: seconds, a timedelta, or text such as `"7d"`."""

from __future__ import annotations

import re
from datetime import timedelta

from carteiro.errors import ConfigurationError

Duration = float | timedelta | str

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_TEXT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|[smhdw])\s*")


def seconds(value: Duration) -> float:
    """`"1h30m"`, `timedelta(minutes=90)` and `5400` are all 5400.0; raises ConfigurationError for what is no length."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, str):
        total, position = 0.0, 0
        while found := _TEXT.match(value, position):
            total += float(found[1]) * UNITS[found[2]]
            position = found.end()
        if position and position == len(value):
            return total
    elif isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return float(value)
    raise ConfigurationError(
        f"`{value}` is no length of time: give seconds, a timedelta, or text such as 500ms, 30s, 7d"
    )


def shown(length: float) -> str:
    """For people: `40 ms`, `3.2 s`, `5 min`."""
    if length < 1:
        return f"{length * 1000:.0f} ms"
    return f"{length:.1f} s" if length < 120 else f"{length / 60:.0f} min"
