"""What every contestant's tasks do, and what is asked of them.

`number` gives back what it is given. A chain adds one at each step, a chord sums up what its members give back.
"""

from __future__ import annotations

STEPS = 5
"""Tasks in a chain."""
MEMBERS = 20
"""Of a small chord, beside its callback."""
MANY = 10_000
"""Members of a large chord."""
PATIENCE = 600.0
"""Seconds for what is waited for as a whole: chains, chords."""
POLL = 0.002
"""Seconds between two looks, of a library that polls for its results: ten times and more as often as by default."""


def counted(steps: int) -> int:
    """What a chain of so many steps results in."""
    return steps


def summed(members: int) -> int:
    """What a chord of so many members results in."""
    return members * (members - 1) // 2


def check(found: object, expected: int) -> None:
    """Raises ValueError where a result is another one than it has to be."""
    if found != expected:
        raise ValueError(f"the result is {found!r}, and has to be {expected}")
