"""Permits to run a task under its limit, shared by all the workers of a cluster.

The store has one value for each key of a limited task, `limit:<task>:<key>`: who runs, when the next may start, and
what `carteiro.tasks.turns` makes of it. It is changed by compare-and-set, so any number of processes share it and none
owns it. Whatever a process wants of all keys at one time, be it to start, to end or to renew, is one read and one
write; what gathers meanwhile goes with the next.

A permit is held under the id of its message, by the process that runs it, and *leased*: renewed every third of the
lease, and with each change of its key. So those of a killed worker come free by themselves, and at once if its message
is delivered again and asks for its own. The limit is exact as long as leases are renewed in time. A worker that was
frozen for longer runs on when it wakes: from the end of its leases to the end of its tasks, as many more than the limit
may run as it holds permits. It takes these back with its first call, and until that is made up for nobody else starts.
Leases and rates go by the workers' clocks, which must agree to a part of a lease.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from carteiro.engine.batcher import Batcher
from carteiro.errors import BrokerUnavailable
from carteiro.message import Write, new_id
from carteiro.policies.limit import Limit
from carteiro.ports.clock import Clock
from carteiro.ports.store import Entry, Store
from carteiro.tasks.turns import Account, Turns

log = logging.getLogger("carteiro.tasks")

LARGEST: Final = 1000
"""Visits in one read and write."""

_SHORTEST_WAIT: Final = 0.002
_LONGEST_WAIT: Final = 0.2
"""Seconds after which a change is tried again that met another's: doubled from the one to the other, with jitter."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Account).decode


class _Visit(msgspec.Struct, eq=False):
    """A reason to change the account of a key: someone asks to run or, without `answer`, has ended or goes on."""

    key: str
    holder: str = ""
    answer: asyncio.Future[float] | None = None
    tries: int = 0


class _Change(msgspec.Struct):
    """What one write does for one key: to each visit its wait, and to so many of those that have ended."""

    key: str
    visits: list[_Visit]
    waits: list[float]
    ended: int
    write: Write


class Permits:
    """The permits of one task with a limit, for one process. `lease` is in seconds."""

    def __init__(self, task: str, limit: Limit, store: Store, clock: Clock, *, lease: float = 30.0) -> None:
        self._task = task
        self._prefix = f"limit:{task}:"
        self._counts_running = limit.running is not None
        self._store = store
        self._clock = clock
        self._lease = lease
        self._turns = Turns(limit, new_id(), lease)
        self._held: dict[str, dict[str, float]] = {}
        """By key and holder: when it was given."""
        self._ended: dict[str, list[tuple[str, float]]] = {}
        """By key: who has ended, how long it ran, and the store does not know it yet."""
        self._batcher = Batcher(self._send, limit=LARGEST)
        self._stepped_back: set[asyncio.Task[None]] = set()
        self._holding = asyncio.Event()
        self._renewing: asyncio.Task[None] | None = None
        self._killed = False

    def start(self) -> None:
        """Renew from now on what is held."""
        self._renewing = asyncio.create_task(self._renew(), name=f"carteiro permits of {self._task}")

    async def close(self) -> None:
        """Give back what has ended, as far as the store takes it, and renew nothing more."""
        await self._stop_renewing()
        self._look_after(self._ended)
        while True:
            await self._batcher.drain()
            if not self._stepped_back:
                return
            await asyncio.wait(self._stepped_back)

    async def kill(self) -> None:
        """Change nothing more in the store, as a killed process would."""
        self._killed = True
        await self._stop_renewing()

    async def admit(self, key: str, holder: str) -> float:
        """Ask for the message `holder` to run: 0.0 if it may, and has a permit until `end`.

        Otherwise the seconds after which it is to be tried again. It is to be given back to the broker until then. Who
        asks again under the same name takes the permit over that it may have had. Raises BrokerUnavailable while the
        store is away.
        """
        visit = _Visit(key, holder, asyncio.get_running_loop().create_future())
        assert visit.answer is not None
        self._batcher.add(visit)
        try:
            return await visit.answer
        except asyncio.CancelledError:
            self.end(key, holder)  # where the answer and the cancel crossed
            raise

    def end(self, key: str, holder: str) -> None:
        """Give the permit back, soon; nobody has to wait for it. Without a permit this does nothing."""
        since = self._drop(key, holder)
        if since is None or self._killed:
            return
        self._ended.setdefault(key, []).append((holder, max(0.0, self._clock.time() - since)))
        self._batcher.add(_Visit(key))

    # -- visits to the store ---------------------------------------------------------------------------------------

    async def _send(self, visits: list[_Visit]) -> None:
        by_key: dict[str, list[_Visit]] = {}
        for visit in visits:
            if visit.answer is None or not visit.answer.done():
                by_key.setdefault(visit.key, []).append(visit)
        try:
            await self._change(by_key)
        except Exception as error:
            self._failed(visits, error)

    async def _change(self, by_key: Mapping[str, list[_Visit]]) -> None:
        """One read and one write for all these keys."""
        if self._killed:
            raise BrokerUnavailable(f"the worker that asks for permits of task `{self._task}` was killed")
        entries = await self._store.get([self._prefix + key for key in by_key])
        now = self._clock.time()
        changes = [self._planned(key, visits, entries.get(self._prefix + key), now) for key, visits in by_key.items()]
        done = await self._store.write([change.write for change in changes])
        for change, written in zip(changes, done, strict=True):
            if written:
                self._apply(change, now)
            else:
                self._step_back(change.visits)

    def _planned(self, key: str, visits: list[_Visit], entry: Entry | None, now: float) -> _Change:
        account = Account() if entry is None else _decode(entry.value)
        ended = self._ended.get(key, [])
        for holder in self._turns.renew(account, self._held.get(key, {}), now):
            self._drop(key, holder)
            log.warning("%s of task `%s` was taken over by another worker, and runs here too", holder, self._task)
        self._turns.give_back(account, ended, now)
        waits = [0.0 if one.answer is None else self._turns.admit(account, one.holder, now) for one in visits]
        ttl, version = self._turns.ttl(account, now), 0 if entry is None else entry.version
        write = Write(self._prefix + key, _encode(account), ttl=ttl, expect=version)
        return _Change(key, visits, waits, len(ended), write)

    def _apply(self, change: _Change, now: float) -> None:
        """The store has it: say so."""
        key = change.key
        if change.ended:  # what ended since is behind them
            self._ended[key] = self._ended[key][change.ended :]
            if not self._ended[key]:
                del self._ended[key]
        for visit, wait in zip(change.visits, change.waits, strict=True):
            if visit.answer is None:
                continue
            if wait == 0.0 and self._counts_running:
                self._held.setdefault(key, {})[visit.holder] = now
                self._holding.set()
            if not visit.answer.done():
                visit.answer.set_result(wait)
            elif wait == 0.0:  # whoever asked has gone meanwhile
                self.end(key, visit.holder)

    def _step_back(self, visits: Iterable[_Visit]) -> None:
        """Try these again after a while: another process was faster."""
        again = [_Visit(one.key, one.holder, one.answer, one.tries + 1) for one in visits]
        longest = min(_LONGEST_WAIT, _SHORTEST_WAIT * 2.0 ** max(one.tries for one in again))
        waiting = asyncio.create_task(self._come_again(again, random.uniform(0, longest)))
        self._stepped_back.add(waiting)
        waiting.add_done_callback(self._stepped_back.discard)

    async def _come_again(self, visits: list[_Visit], wait: float) -> None:
        await self._clock.sleep(wait)
        self._batcher.extend(visits)

    def _failed(self, visits: Iterable[_Visit], error: Exception) -> None:
        """Who asked is told; what has ended or ages is looked after again by the loop that renews."""
        if not self._killed and any(visit.answer is None for visit in visits):
            log.warning("permits of task `%s` are not given back or renewed, trying again: %s", self._task, error)
        for visit in visits:
            if visit.answer is not None and not visit.answer.done():
                visit.answer.set_exception(error)

    # -- leases ----------------------------------------------------------------------------------------------------

    async def _renew(self) -> None:
        while True:
            await self._holding.wait()
            await self._clock.sleep(self._lease / 3)
            if self._held or self._ended:
                self._look_after({*self._held, *self._ended})
            else:
                self._holding.clear()

    def _look_after(self, keys: Iterable[str]) -> None:
        """Visit these keys: each visit renews what is held and gives back what has ended."""
        self._batcher.extend([_Visit(key) for key in keys])

    async def _stop_renewing(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait([self._renewing])
            self._renewing = None

    def _drop(self, key: str, holder: str) -> float | None:
        """Hold it no more; when it was given, None where it was not."""
        held = self._held.get(key, {})
        since = held.pop(holder, None)
        if since is not None and not held:
            del self._held[key]
        return since
