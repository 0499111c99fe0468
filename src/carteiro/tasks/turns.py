"""Whose turn it is, under one limit and one key: what may run now, and when what may not is to be tried again.

What is over a limit cannot wait in a worker, and there is no line in the broker that it could be put in: it can only
be sent away for a time. A million messages of one key that are all sent away for a second come back every second. So
each is sent to a place of its own in the time ahead. The *cursor* is the last place given; the next is one *step*
after it, a step being how long it takes for a permit to come free, as the durations seen so far say, and a little
less, since a permit that waits for a message is lost while a message that comes too early only moves once more. One
that does goes behind the others; nothing knows it again, and nothing need: the place that it came from has passed.

Four rules keep the estimate from doing harm:

- Nobody is sent further ahead than it was looked back: `LOOK` times as long as permits were in demand so far, at most
  `FURTHEST`. Then the places start again from the front, between those given before. So a pace that turns out to be
  another costs little of the time that it took to find out, and a message moves a number of times that grows as the
  logarithm of its wait, and every ten minutes after that. A rate is known, and needs no looking back.
- A permit that was free for longer than a task takes, says that too few come: the cursor goes back to now.
- A task that runs longer than any before counts with half of its age, so that those behind it do not rotate.
- The next start under a rate is known exactly. One message, and only one, is sent to just that time.

Simulated with 10,000 messages of one key, 20 slots and 2 ms a call; ten messages of another key lie behind all of them:

    limit       a task takes           idle permits   moves a message   the ten are done after
    2 running   nothing                17%             2.4              1.9 s (of these, 1 s to get to them)
    2 running   10 ms                  12%             3.4              1.4 s
    2 running   10 ms, 1 s in a tenth  10%             8                1.4 s (of 10 ms each)
    2 running   1 s                     6%            13                6.8 s (at best 6)
    1 running   1 s                     6%            22               13 s (at best 11)
    10 running  1 s                     5%             5                3 s (at best 3)
    100/m       10 ms (1,000 messages)  1%             2                5.5 s (at best 5.5)

Where a broker rounds delays up to tenths of a second, tasks of 10 ms leave 40% idle and move 18 times; those of 1 s do
not notice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from carteiro.policies.limit import Limit
from carteiro.policies.rate import Rate

NEAREST: Final = 0.02
"""Seconds: nobody is sent away for less, but to a rate's own next time."""

FURTHEST: Final = 600.0
"""Seconds. A million messages of one key then cost 1,700 moves a second; a new pace is used in full by then."""

LOOK: Final = 4.0
"""How many times as long as permits were in demand the places may lie ahead. With 2 there were 3 more moves."""

_FIRST_LOOK: Final = 2.0
_GUESS: Final = 0.01
"""Seconds that a task takes, as long as none has ended. Too little costs a move; too much, idle permits."""

_LEARNED: Final = 0.1
"""The weight of the last duration in the average."""

_BURST: Final = 0.1
"""Seconds whose starts may go at once after a pause: as long as the coarsest delay that a broker has."""

_SURE: Final = 1.15
"""Places for each start under a rate: one is sent exactly, so it takes few more than one to be sure of it."""

_MARGIN: Final = 0.001
"""Seconds after a rate's next time: who comes right on it must not be early by a rounding."""

_REMEMBERED: Final = 600.0
"""Seconds after which a key is forgotten that nobody uses."""


class Permit(msgspec.Struct, array_like=True, gc=False):
    """What the holder of one was given. `until` is when its lease ends, `since` when it started; both are times."""

    owner: str
    """Who renews it: the `Permits` of one process."""
    until: float
    since: float


class Account(msgspec.Struct, array_like=True):
    """What the store keeps of one key. Times are seconds since the epoch, by the workers' clocks."""

    holders: dict[str, Permit] = {}
    spoken_for: float = 0.0
    """When the next may start, by the rate: its theoretical arrival time."""
    promised: float = 0.0
    """The `spoken_for` to which a message was sent exactly."""
    cursor: float = 0.0
    """The last place that was given."""
    average: float | None = None
    """Seconds that a permit was held, lately."""
    demanded: float = 0.0
    """Since when there has been no permit without a taker."""
    freed: float = 0.0
    """When a permit came free, of all that were taken."""


class Turns:
    """The rules of one limit, applied to one account after another. `owner` is whose permits are given."""

    def __init__(self, limit: Limit, owner: str, lease: float) -> None:
        self._running = limit.running
        self._owner = owner
        self._lease = lease
        self._interval = self._credit = 0.0
        if limit.rate is not None:  # as in carteiro.policies.rate: no window ever holds more than the count
            rate = Rate.parse(limit.rate)
            burst = max(1, int(_BURST * rate.count / rate.per))
            self._interval = rate.per / (rate.count - burst + 1)
            self._credit = (burst - 1) * self._interval

    def renew(self, account: Account, held: Mapping[str, float], now: float) -> list[str]:
        """Renew what this owner holds, by when it was given. Returns those that another has taken over.

        What has run out meanwhile it has again, even if that is one more than the limit: it does run.
        """
        lost = []
        for holder, since in held.items():
            permit = account.holders.get(holder)
            if permit is None or permit.owner == self._owner:
                account.holders[holder] = Permit(self._owner, now + self._lease, since)
            else:
                lost.append(holder)
        return lost

    def give_back(self, account: Account, ended: Iterable[tuple[str, float]], now: float) -> None:
        """Take back this owner's permits that ended, each with how long it was held, and those whose lease did."""
        holders, before = account.holders, len(account.holders)
        for holder, duration in ended:
            permit = holders.get(holder)
            if permit is not None and permit.owner == self._owner:
                del holders[holder]
                average = duration if account.average is None else account.average
                account.average = average + (duration - average) * _LEARNED
        for holder in [holder for holder, permit in holders.items() if permit.until <= now]:
            del holders[holder]
        if self._running is not None and len(holders) < self._running <= before:
            account.freed = now

    def admit(self, account: Account, holder: str, now: float) -> float:
        """0.0 where it may run now, else the seconds for which it is to be sent away."""
        account.holders.pop(holder, None)  # it comes again: that it was running is over
        spoken_for = max(account.spoken_for, now - self._credit) if self._interval else 0.0
        permitted = self._running is None or len(account.holders) < self._running
        if not permitted or spoken_for > now:
            return self._sent_away(account, permitted, now)
        if now - max(account.freed, account.spoken_for) > max(account.average or 0.0, self._interval) + NEAREST:
            account.cursor = account.demanded = now
        if self._running is not None:
            account.holders[holder] = Permit(self._owner, now + self._lease, now)
        if self._interval:
            account.spoken_for = spoken_for + self._interval
        return 0.0

    def ttl(self, account: Account, now: float) -> float:
        """Seconds for which the account is worth keeping."""
        ends = max((permit.until for permit in account.holders.values()), default=now)
        return max(ends, account.spoken_for, account.cursor) - now + _REMEMBERED

    def _sent_away(self, account: Account, permitted: bool, now: float) -> float:
        if permitted and account.promised < account.spoken_for <= now + FURTHEST:
            account.promised = account.spoken_for
            account.cursor = max(account.cursor, account.spoken_for)
            return account.spoken_for - now + _MARGIN
        step = self._step(account, now)
        ahead = FURTHEST if self._interval else min(FURTHEST, _FIRST_LOOK + LOOK * (now - account.demanded))
        account.cursor = max(account.cursor + step, now + NEAREST)
        if account.cursor > now + ahead:
            account.cursor = now + min(max(step, NEAREST), ahead)
        return account.cursor - now

    def _step(self, account: Account, now: float) -> float:
        """Seconds from one place to the next."""
        step = self._interval / _SURE
        if self._running is not None:
            age = now - max((permit.since for permit in account.holders.values()), default=now)
            duration = max(_GUESS if account.average is None else account.average, age / 2)
            # A permit waits half a step for its message. With one permit that is a loss by itself, so there are three
            # places for each task; with many, one waits for hardly longer than another does.
            step = max(step, duration / (self._running + 2))
        return step
