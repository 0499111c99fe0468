"""Rate limits that hold across all the workers of a group.

The limit's only state is one number in the store: the time until which all permits are spoken for (the generic cell
rate algorithm's *theoretical arrival time*). Taking n permits moves it n intervals ahead by one compare-and-set, so any
number of processes share it and none holds it. At most `BURST` seconds' worth are taken ahead of their time, so that a
fast limit is served in batches while a slow one is paced evenly.
"""

from __future__ import annotations

import re

import msgspec

from carteiro.durations import UNITS
from carteiro.errors import ConfigurationError
from carteiro.message import Write
from carteiro.ports.clock import Clock
from carteiro.ports.store import Store

BURST = 0.05
_TEXT = re.compile(r"(\d+)/(\d*)([smhd])")


class Rate(msgspec.Struct, frozen=True):
    """`count` messages in each `per` seconds."""

    count: int
    per: float

    @classmethod
    def parse(cls, text: str) -> Rate:
        """`"100/m"`, `"5/10s"`; raises ConfigurationError otherwise."""
        found = _TEXT.fullmatch(text.replace(" ", ""))
        if not found or not int(found[1]) or found[2] == "0":
            raise ConfigurationError(f"rate limit `{text}`: write it as 100/m, 10/s, 5/10s or 1000/h")
        return cls(int(found[1]), int(found[2] or 1) * UNITS[found[3]])


class RateLimiter:
    """Hands out permits for one rate under one key of the store."""

    def __init__(self, rate: Rate, key: str, store: Store, clock: Clock) -> None:
        self.burst = max(1, int(BURST * rate.count / rate.per))
        """The most permits there ever are at once."""
        # After a pause a burst goes at once: the others are spaced so that no window ever holds more than the count.
        self._interval = rate.per / (rate.count - self.burst + 1)
        self._key = f"rate:{key}"
        self._store = store
        self._clock = clock

    async def take(self, wanted: int) -> tuple[int, float]:
        """How many of the wanted permits may be used now, and the seconds until there will be another."""
        while True:
            entry = (await self._store.get([self._key])).get(self._key)
            now = self._clock.time()
            unused_since = now - (self.burst - 1) * self._interval
            spoken_for = max(unused_since, float(entry.value) if entry else 0.0)
            if spoken_for > now:
                return 0, spoken_for - now
            granted = min(wanted, int((now - spoken_for) / self._interval) + 1)
            spoken_for += granted * self._interval
            write = Write(
                self._key, repr(spoken_for).encode(), ttl=self._interval + 60, expect=entry.version if entry else 0
            )
            if (await self._store.write([write]))[0]:
                return granted, max(0.0, spoken_for - now)
