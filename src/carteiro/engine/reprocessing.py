"""Dead letters that are sent back by themselves: `every` after they died, at most `limit` times.

Every worker of a group looks, and none of them leads. How often a message was sent back, and when last, is one *mark*
in the store under its id. Who moves the mark by compare-and-set sends the letter back; for the others it is not due
again before another `every` has passed. A worker that dies between the two leaves a letter that is due later, and one
time fewer. So a letter is never sent back twice for one death, nor more than `limit` times.

A mark is kept for `KEPT`; that of a letter which has had its times is renewed as long as the letter is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from typing import Final

import msgspec

from carteiro.durations import seconds, shown
from carteiro.engine.failures import is_hopeless
from carteiro.engine.routes import Route
from carteiro.errors import BrokerUnavailable, ConfigurationError
from carteiro.message import DeadLetter, Subscription, Write
from carteiro.policies.reprocess import Reprocess
from carteiro.ports.broker import Broker, Inspector
from carteiro.ports.clock import Clock
from carteiro.ports.store import Store
from carteiro.topics import dlq_name, is_pattern

log = logging.getLogger("carteiro.worker")

PAGE: Final = 500
"""How many dead letters are looked at in one step, with a turn for everyone else after it."""
KEPT: Final = 30 * 86_400.0
"""Seconds."""
AGAIN: Final = 5.0
"""Seconds until the next look after one that failed."""
SOONEST: Final = 1.0
"""Seconds between two looks at least: what dies one by one is sent back by the dozen."""
TRIES: Final = 3
_TICK: Final = 0.001
"""Seconds by which a letter may be early: a wait does not end on the microsecond."""


class _Mark(msgspec.Struct, frozen=True, array_like=True):
    """How often a message was sent back, and when last (seconds since the epoch)."""

    times: int = 0
    at: float = 0.0


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Mark).decode


class Reprocessing:
    """Sends back the dead letters of those routes of one worker that ask for it, until it is cancelled."""

    def __init__(self, routes: Sequence[Route], broker: Broker, store: Store | None, clock: Clock) -> None:
        self._groups: list[_Group] = []
        for route in routes:
            if route.reprocess is None:
                continue
            if store is None:
                raise ConfigurationError(f"{route.subscription} needs a store to reprocess dead letters: pass `store=`")
            if not isinstance(broker, Inspector):
                raise ConfigurationError(
                    f"{route.subscription} cannot reprocess dead letters: {broker.features.backend} does not show them"
                )
            self._groups.append(_Group(route.subscription, route.reprocess, broker, store, clock))

    async def run(self) -> None:
        await asyncio.gather(*(group.run() for group in self._groups))


class _Group:
    """The dead letters of one subscription."""

    def __init__(
        self, subscription: Subscription, policy: Reprocess, inspector: Inspector, store: Store, clock: Clock
    ) -> None:
        self._subscription = subscription
        self._every = seconds(policy.every)
        self._limit = policy.limit
        self._inspector = inspector
        self._store = store
        self._clock = clock
        topic = subscription.topic
        # A second group changes the queue's name; what a pattern gets is in many.
        queues = (None,) if is_pattern(topic) else (dlq_name(topic), dlq_name(topic, subscription.group))
        self._reach: dict[str | None, int] = dict.fromkeys(queues, PAGE)
        """How many letters of each queue are fetched at once: enough to get beyond those that stay."""

    async def run(self) -> None:
        while True:
            try:
                wait = min([await self._look(queue) for queue in self._reach])
            except Exception as error:
                wait = min(AGAIN, self._every)
                log.warning(
                    "dead letters of %s cannot be reprocessed now: %s", self._subscription, error,
                    exc_info=not isinstance(error, BrokerUnavailable),
                )  # fmt: skip
            await self._clock.sleep(max(wait, min(SOONEST, self._every / 10)))

    async def _look(self, queue: str | None) -> float:
        """Send back what is due; returns the seconds until something may be due again."""
        hopeless = cache(is_hopeless)  # it walks all kinds of errors, and some come while the app runs
        seen: set[tuple[str, str]] = set()
        wait = self._every
        while True:
            reach = self._reach[queue]
            letters = await self._inspector.dead_letters(queue, limit=reach)
            fresh = [letter for letter in letters if (letter.queue, letter.id) not in seen]
            seen.update((letter.queue, letter.id) for letter in fresh)
            sent = 0
            for start in range(0, len(fresh), PAGE):
                page = fresh[start : start + PAGE]
                count, due = await self._send_back(
                    [one for one in page if self._is_ours(one) and not hopeless(one.reason.partition(":")[0])]
                )
                sent, wait = sent + count, min(wait, due)
                await self._clock.sleep(0)
            if len(letters) < reach or letters[-1].at + self._every > self._clock.time():
                self._reach[queue] = max(PAGE, min(reach, 2 * len(letters)))
                return wait  # oldest first: what follows is younger still
            if not sent:  # what is here stays here: look beyond it
                self._reach[queue] = 2 * reach

    async def _send_back(self, letters: Sequence[DeadLetter]) -> tuple[int, float]:
        """How many of these were due and are sent back, and the seconds until the next one is due."""
        if not letters:
            return 0, self._every
        keys = [f"reprocess:{self._subscription}:{letter.message.id}" for letter in letters]
        entries = await self._store.get(list(dict.fromkeys(keys)))
        now, wait = self._clock.time(), self._every
        due: list[tuple[DeadLetter, Write]] = []
        renewed: list[Write] = []
        for letter, key in zip(letters, keys, strict=True):
            entry = entries.get(key)
            mark, version = (_Mark(), 0) if entry is None else (_decode(entry.value), entry.version)
            left = max(letter.at, mark.at) + self._every - now
            if mark.times >= self._limit:
                if now - mark.at > KEPT / 2:
                    renewed.append(self._moved(key, mark.times, now, version))
            elif left > _TICK:
                wait = min(wait, left)
            else:
                due.append((letter, self._moved(key, mark.times + 1, now, version)))
        moved = await self._store.write([*(write for _, write in due), *renewed])
        mine: defaultdict[str, list[str]] = defaultdict(list)
        for (letter, _), is_mine in zip(due, moved, strict=False):
            if is_mine:
                mine[letter.queue].append(letter.id)
        for queue, ids in mine.items():
            count = await self._replay(queue, ids)
            log.info("%d of %s go back to %s, %s after they died", count, queue, self._subscription, shown(self._every))
        return sum(map(len, mine.values())), wait

    async def _replay(self, queue: str, ids: Sequence[str]) -> int:
        """How many went back. On RabbitMQ one that someone looks at just now is out of reach: it is asked for again."""
        count = await self._inspector.replay(queue, ids=ids)
        for _ in range(TRIES):
            if count == len(ids):
                break
            await self._clock.sleep(min(SOONEST, self._every))
            count += await self._inspector.replay(queue, ids=ids)
        return count

    def _is_ours(self, letter: DeadLetter) -> bool:
        return letter.topic == self._subscription.topic and letter.group == self._subscription.group

    def _moved(self, key: str, times: int, now: float, version: int) -> Write:
        return Write(key, _encode(_Mark(times, now)), ttl=KEPT + self._every, expect=version)
