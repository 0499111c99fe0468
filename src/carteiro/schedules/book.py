"""The schedules of an app, as its code declares them and as the store has them."""

from __future__ import annotations

import builtins
import copy
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Final, Protocol, TypeVar, Unpack

import msgspec

from carteiro.errors import BrokerUnavailable, ConfigurationError
from carteiro.message import Write
from carteiro.ports.clock import Clock
from carteiro.ports.store import Entry, Store
from carteiro.schedules.declaring import FiringOptions, Plan, Publish, Spec, plan
from carteiro.schedules.endings import outcome, outcome_key
from carteiro.schedules.firing import Firing
from carteiro.schedules.records import (
    Definition,
    Keys,
    Last,
    Schedule,
    What,
    pack,
    schedule_of,
    schedules_of,
)
from carteiro.schedules.specs import Cron, dues, jittered
from carteiro.tasks.canvas import Canvas

log = logging.getLogger("carteiro.schedules")

AT_ONCE: Final = 500
"""Records in one read."""

T = TypeVar("T")


class Fired(msgspec.Struct, frozen=True):
    """A firing: when it was due (with its jitter) and sent, the id of what was sent, and how it stands with that.

    `outcome` is `"sent"` for a message, `"skipped"` where the one before was not over, and for a task or a workflow its
    status. `lateness` is in seconds.
    """

    due: datetime
    at: datetime
    id: str
    outcome: str

    @property
    def lateness(self) -> float:
        return (self.at - self.due).total_seconds()


class ScheduleStatus(msgspec.Struct, frozen=True):
    """How it stands with a schedule. `spec` and `what` are in words; `next` is None while it is paused, or at its
    end.
    """

    name: str
    spec: str
    what: str
    next: datetime | None
    paused: bool
    in_code: bool
    count: int
    last: Fired | None = None
    tz: str | None = None
    """Of a cron: its time zone."""


class Link(Protocol):
    """The connections by which schedules are kept and sent."""

    async def store(self) -> Store: ...

    async def send(self, firings: Sequence[Firing]) -> Mapping[str, str]:
        """As `firing.Send`."""
        ...


class Office(Protocol):
    """The app, as far as its schedules need it."""

    @property
    def name(self) -> str: ...

    @property
    def clock(self) -> Clock: ...

    def what(self, what: Canvas | Publish) -> What:
        """What is to be sent, ready to be kept. Raises ConfigurationError, Unencodable and TypeError."""
        ...

    def link(self) -> Link:
        """Raises NotConnected."""
        ...

    def call_sync(self, work: Callable[[Link], Awaitable[T]]) -> T: ...


class Schedules:
    """`app.schedules`: add, list, pause, resume, remove and fire, while running.

    What changes a schedule has a twin that ends in `_sync`, for code that has no event loop.
    """

    def __init__(self, office: Office) -> None:
        self.declared: dict[str, Plan] = {}
        """Those of the code, by name."""
        self._office = office
        self._keys = Keys(office.name)
        self._own_link: Link | None = None

    def declare(self, plan: Plan) -> None:
        """Raises ConfigurationError where another has its name."""
        if plan.name in self.declared:
            raise ConfigurationError(
                f"two schedules of app `{self._office.name}` are called `{plan.name}`: give one of them another name"
            )
        self.declared[plan.name] = plan

    # -- asking ----------------------------------------------------------------------------------------------------

    async def list(self) -> builtins.list[ScheduleStatus]:
        """All of them, by when they are due; those without a next time last."""
        store = await self._store()
        found = [schedule_of(entry) for entry in (await store.scan(self._keys.records)).values()]
        statuses = await self._statuses(store, found)
        return sorted(statuses, key=lambda one: (one.next is None, one.next, one.name))

    async def get(self, name: str) -> ScheduleStatus:
        """Raises ConfigurationError where there is none of this name."""
        store = await self._store()
        schedule, _ = await self._there(store, name)
        return (await self._statuses(store, [schedule]))[0]

    async def upcoming(self, name: str, count: int = 10) -> builtins.list[datetime]:
        """Its next due times, without jitter; of one that is paused, those if it is resumed now.

        The first has passed already where it waits to be fired. Raises ConfigurationError where there is none of this
        name.
        """
        schedule, _ = await self._there(await self._store(), name)
        now = self._office.clock.time()
        if (due := _resumed(schedule, now).due) is None:
            return []
        following = dues(schedule.definition.spec, max(due, now), schedule.anchor)
        return [_moment(due), *map(_moment, islice(following, count - 1))]

    async def soonest(self, count: int) -> builtins.list[ScheduleStatus]:
        """Those that are due first: it costs the same however many there are."""
        store, limit = await self._store(), count
        while True:
            hints = await store.scan(self._keys.dues, limit=limit)
            records = await store.get([self._keys.record(self._keys.read(hint)[1]) for hint in hints])
            found = [one for one in schedules_of(records) if self._keys.due(one) in hints]
            if len(found) >= count or len(hints) < limit:
                break
            limit *= 4  # hints of others, as those that were paused, stood before them
        return await self._statuses(store, sorted(found, key=lambda one: one.fires_at or 0.0)[:count])

    # -- changing --------------------------------------------------------------------------------------------------

    async def add(
        self,
        name: str,
        spec: Spec,
        what: Canvas | Publish,
        **options: Unpack[FiringOptions],
    ) -> ScheduleStatus:
        """Keep a schedule in the store, as `app.schedule` does in code. Returns once it is safe there.

        One that was added under this name before is replaced; adding the same again changes nothing. A one-shot is
        forgotten a day after it was fired. Raises ConfigurationError for what cannot be, and for the name of one that
        is in the code.
        """
        planned = plan(name, spec, what, **options)
        if name in self.declared:
            raise ConfigurationError(f"schedule `{name}` is in the code of app `{self._office.name}`: change it there")
        definition, store = self._definition(planned), await self._store()
        while True:
            entry = await self._entry(store, name)
            before = None if entry is None else schedule_of(entry)
            if before is not None and before.definition == definition and not before.in_code:
                schedule = before
                break
            schedule = self._new(name, definition, in_code=False)
            if await self._put(store, schedule, entry):
                break
        return (await self._statuses(store, [schedule]))[0]

    async def remove(self, name: str) -> bool:
        """Whether there was one to remove. One that is in the code cannot be: pause it."""
        if name in self.declared:
            raise ConfigurationError(
                f"schedule `{name}` is in the code of app `{self._office.name}`, which would bring it back: "
                "remove it there, or pause it"
            )
        store = await self._store()
        entry = await self._entry(store, name)
        if entry is None:
            return False
        await self._remove(store, schedule_of(entry))
        return True

    async def pause(self, name: str) -> None:
        """Fire it no more until it is resumed, over starts and deploys. Raises ConfigurationError for no such name."""
        await self._change(name, lambda schedule: msgspec.structs.replace(schedule, paused=True, queued=None))

    async def resume(self, name: str) -> None:
        """Fire it again from now on: what was due meanwhile is not made up for, but for a one-shot."""
        now = self._office.clock.time()
        await self._change(name, lambda schedule: _resumed(schedule, now))

    async def fire(self, name: str) -> str:
        """Fire it now, besides its times, also while it is paused. Returns the id of what was sent."""
        store, now = await self._store(), self._office.clock.time()
        schedule, _ = await self._there(store, name)
        id = f"{schedule.id_at(now)}-{os.urandom(3).hex()}"
        sent = (await self._link.send([Firing(schedule, now, id)])).get(id)
        if sent is None:
            raise BrokerUnavailable(f"schedule `{name}` cannot be fired now: the log says why")
        last = Last(now, self._office.clock.time(), sent)
        await self._change(name, lambda one: msgspec.structs.replace(one, last=last, count=one.count + 1))
        return sent

    def add_sync(
        self, name: str, spec: Spec, what: Canvas | Publish, **options: Unpack[FiringOptions]
    ) -> ScheduleStatus:
        """`add` for code that has no event loop."""
        return self._sync(lambda here: here.add(name, spec, what, **options))

    def remove_sync(self, name: str) -> bool:
        return self._sync(lambda here: here.remove(name))

    def pause_sync(self, name: str) -> None:
        self._sync(lambda here: here.pause(name))

    def resume_sync(self, name: str) -> None:
        self._sync(lambda here: here.resume(name))

    def fire_sync(self, name: str) -> str:
        return self._sync(lambda here: here.fire(name))

    # -- from the code to the store --------------------------------------------------------------------------------

    async def agree(self) -> None:
        """Have the store hold what the code says: what is gone from it is removed, what has changed is changed.

        Whoever fires does so when it starts. What somebody has paused stays so.
        """
        store, key = await self._store(), self._keys.in_code
        names = frozenset(self.declared)
        while True:
            entry = (await store.get((key,))).get(key)
            before = frozenset[str]() if entry is None else _names(entry.value)
            version = 0 if entry is None else entry.version
            if names <= before:
                await self._agree_on(store, before)
            if names == before:
                return
            # Those that are new are noted before they are there, those that are gone until they are.
            noted = names if names < before else names | before
            if (await store.write([Write(key, pack(sorted(noted)), expect=version)]))[0] and noted is names:
                return

    async def _agree_on(self, store: Store, names: Iterable[str]) -> None:
        records = {name: self._keys.record(name) for name in names}
        found = await store.get(list(records.values()))
        hints = set[str | None]()
        for name, key in records.items():
            if name in self.declared:
                hints.add(await self._agree(store, name, self._definition(self.declared[name]), found.get(key)))
            elif key in found and (schedule := schedule_of(found[key])).in_code:
                log.info("schedule `%s` is gone from the code, and is removed", name)
                await self._remove(store, schedule)
        if due := sorted(hint for hint in hints if hint is not None):
            await store.write([Write(hint, b"", expect=0) for hint in due])  # should anybody have lost one
            await self._ring(store, due[0])

    async def _agree(self, store: Store, name: str, definition: Definition, entry: Entry | None) -> str | None:
        """Returns its entry in the index."""
        while True:
            before = None if entry is None else schedule_of(entry)
            if before is not None and before.in_code and before.definition == definition:
                return self._keys.due(before)
            schedule = self._new(name, definition, in_code=True)
            if before is not None:
                schedule = self._changed(before, definition)
            if await self._write(store, schedule, entry):
                log.info("schedule `%s`: %s", name, definition.spec)
                return self._keys.due(schedule)
            entry = await self._entry(store, name)

    def _changed(self, before: Schedule, definition: Definition) -> Schedule:
        """What was due and not fired yet is due now; the rest is as the new definition says."""
        now = self._office.clock.time()
        same = before.definition.spec == definition.spec
        anchor = before.anchor if same else now
        due = before.due
        if not same and (due is None or due > now):
            due = definition.spec.after(now, anchor)
        return msgspec.structs.replace(before, definition=definition, in_code=True, anchor=anchor, due=due, queued=None)

    def _definition(self, plan: Plan) -> Definition:
        try:
            what = self._office.what(plan.what)
        except Exception as error:
            error.add_note(f"in schedule `{plan.name}` of app `{self._office.name}`")
            raise
        return Definition(plan.spec, what, plan.misfire, plan.max_age, plan.overlap)

    def _new(self, name: str, definition: Definition, *, in_code: bool) -> Schedule:
        now = self._office.clock.time()
        due = definition.spec.after(now, now)
        if due is None and not in_code:  # a one-shot whose time has passed is late, or missed
            due = definition.spec.after(0.0, 0.0)
        return Schedule(name, os.urandom(4).hex(), definition, in_code, now, due)

    # -- the store -------------------------------------------------------------------------------------------------

    @property
    def _link(self) -> Link:
        return self._own_link or self._office.link()

    def _sync(self, work: Callable[[Schedules], Awaitable[T]]) -> T:
        async def there(link: Link) -> T:
            here = copy.copy(self)
            here._own_link = link
            return await work(here)

        return self._office.call_sync(there)

    async def _store(self) -> Store:
        return await self._link.store()

    async def _entry(self, store: Store, name: str) -> Entry | None:
        key = self._keys.record(name)
        return (await store.get((key,))).get(key)

    async def _there(self, store: Store, name: str) -> tuple[Schedule, Entry]:
        entry = await self._entry(store, name)
        if entry is None:
            some = await store.scan(self._keys.records, limit=20)
            known = sorted({*self.declared, *(key.removeprefix(self._keys.records) for key in some)})
            raise ConfigurationError(
                f"app `{self._office.name}` has no schedule `{name}`: "
                + (f"it has {', '.join(known)}" if known else "it has none")
            )
        return schedule_of(entry), entry

    async def _change(self, name: str, change: Callable[[Schedule], Schedule]) -> None:
        store = await self._store()
        while True:
            schedule, entry = await self._there(store, name)
            if (changed := change(schedule)) == schedule or await self._put(store, changed, entry):
                return

    async def _put(self, store: Store, schedule: Schedule, before: Entry | None) -> bool:
        """As `_write`, and tell those who wait."""
        if not await self._write(store, schedule, before):
            return False
        if (hint := self._keys.due(schedule)) is not None:
            await self._ring(store, hint)
        return True

    async def _write(self, store: Store, schedule: Schedule, before: Entry | None) -> bool:
        """Write the record over the one that was read, with its entry in the index; False where that has changed."""
        hint = self._keys.due(schedule)
        version = 0 if before is None else before.version
        writes = [
            Write(self._keys.record(schedule.name), pack(schedule), ttl=schedule.ttl, expect=version),
            *([] if hint is None else [Write(hint, b"")]),
        ]
        return (await store.write(writes))[0]

    async def _ring(self, store: Store, hint: str) -> None:
        """Wake those who wait, unless what they wait for comes first: they look again then."""
        now, first = self._office.clock.time(), await store.scan(self._keys.dues, limit=1)
        if any(self._keys.read(one)[0] <= now for one in first):  # it may be due, and wait for the one before
            past = await store.scan(self._keys.dues, before=self._keys.until(now))
            first = await store.scan(self._keys.dues, limit=len(past) + 1)
        if hint in first:
            await store.write([Write(self._keys.bell, b"")])

    async def _remove(self, store: Store, schedule: Schedule) -> None:
        hint = self._keys.due(schedule)
        await store.write(
            [Write(self._keys.record(schedule.name), None), *([] if hint is None else [Write(hint, None)])]
        )

    async def _statuses(self, store: Store, schedules: Iterable[Schedule]) -> builtins.list[ScheduleStatus]:
        found, entries = [*schedules], dict[str, Entry]()
        ended = (outcome_key(one.definition.what, one.last.id) for one in found if one.last is not None)
        keys = [key for key in ended if key is not None]
        for start in range(0, len(keys), AT_ONCE):
            entries |= await store.get(keys[start : start + AT_ONCE])
        return [_status(one, entries) for one in found]


_names = msgspec.msgpack.Decoder(frozenset[str]).decode


def _resumed(schedule: Schedule, now: float) -> Schedule:
    if not schedule.paused:
        return schedule
    after = schedule.after(now)
    return msgspec.structs.replace(schedule, paused=False, due=schedule.due if after is None else after)


def _status(schedule: Schedule, entries: dict[str, Entry]) -> ScheduleStatus:
    definition, last, fires_at = schedule.definition, schedule.last, schedule.fires_at
    fired = None
    if last is not None:
        key = outcome_key(definition.what, last.id)
        how = outcome(definition.what, last, None if key is None else entries.get(key))
        due = jittered(definition.spec, schedule.name, last.due)
        # One that somebody has fired by hand has no jitter, and was sent before it would have been over.
        fired = Fired(_moment(last.due if due > last.at else due), _moment(last.at), last.id, how)
    return ScheduleStatus(
        schedule.name, str(definition.spec), definition.what.label, None if fires_at is None else _moment(fires_at),
        schedule.paused, schedule.in_code, schedule.count, fired, tz_of(definition.spec),
    )  # fmt: skip


def tz_of(spec: Spec) -> str | None:
    return spec.tz if isinstance(spec, Cron) else None


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
