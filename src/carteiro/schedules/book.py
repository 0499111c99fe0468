"""The schedules of an app, as its code declares them and as the store has them."""

from __future__ import annotations

import builtins
import copy
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Protocol, TypeVar, Unpack

import msgspec

from carteiro.errors import BrokerUnavailable, ConfigurationError
from carteiro.ports.clock import Clock
from carteiro.ports.store import Entry, Store
from carteiro.schedules.agreeing import agree
from carteiro.schedules.declaring import FiringOptions, Plan, Publish, Spec, plan
from carteiro.schedules.keeping import Keeper
from carteiro.schedules.moves import Firing
from carteiro.schedules.records import Definition, Keys, Last, Schedule, What, schedule_of, schedules_of
from carteiro.schedules.specs import dues
from carteiro.schedules.status import ScheduleStatus, moment, statuses
from carteiro.tasks.canvas import Canvas

T = TypeVar("T")


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
        store = await self._link.store()
        found = [schedule_of(entry) for entry in (await store.scan(self._keys.records)).values()]
        return sorted(await statuses(store, found), key=lambda one: (one.next is None, one.next, one.name))

    async def get(self, name: str) -> ScheduleStatus:
        """Raises ConfigurationError where there is none of this name."""
        keeper = await self._keeper()
        schedule, _ = await self._there(keeper, name)
        return (await statuses(keeper.store, [schedule]))[0]

    async def upcoming(self, name: str, count: int = 10) -> builtins.list[datetime]:
        """Its next due times, without jitter; of one that is paused, those if it is resumed now.

        The first has passed already where it waits to be fired. Raises ConfigurationError where there is none of this
        name.
        """
        schedule, _ = await self._there(await self._keeper(), name)
        now = self._office.clock.time()
        if (due := _resumed(schedule, now).due) is None:
            return []
        following = dues(schedule.definition.spec, max(due, now), schedule.anchor)
        return [moment(due), *map(moment, islice(following, count - 1))]

    async def soonest(self, count: int) -> builtins.list[ScheduleStatus]:
        """Those that are due first: it costs the same however many there are."""
        store, limit = await self._link.store(), count
        while True:
            hints = await store.scan(self._keys.dues, limit=limit)
            records = await store.get([self._keys.record(self._keys.read(hint)[1]) for hint in hints])
            found = [one for one in schedules_of(records) if self._keys.due(one) in hints]
            if len(found) >= count or len(hints) < limit:
                break
            limit *= 4  # hints of others, as those that were paused, stood before them
        return await statuses(store, sorted(found, key=lambda one: one.fires_at or 0.0)[:count])

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
        definition, keeper = self._definition(planned), await self._keeper()
        while True:
            entry = await keeper.entry(name)
            before = None if entry is None else schedule_of(entry)
            if before is not None and before.definition == definition and not before.in_code:
                schedule = before
                break
            schedule = keeper.new(name, definition, in_code=False)
            if await keeper.put(schedule, entry):
                break
        return (await statuses(keeper.store, [schedule]))[0]

    async def remove(self, name: str) -> bool:
        """Whether there was one to remove. One that is in the code cannot be: pause it."""
        if name in self.declared:
            raise ConfigurationError(
                f"schedule `{name}` is in the code of app `{self._office.name}`, which would bring it back: "
                "remove it there, or pause it"
            )
        keeper = await self._keeper()
        entry = await keeper.entry(name)
        if entry is None:
            return False
        await keeper.remove(schedule_of(entry))
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
        keeper, now = await self._keeper(), self._office.clock.time()
        schedule, _ = await self._there(keeper, name)
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
        await agree(await self._keeper(), self.declared, self._definition)

    def _definition(self, plan: Plan) -> Definition:
        try:
            what = self._office.what(plan.what)
        except Exception as error:
            error.add_note(f"in schedule `{plan.name}` of app `{self._office.name}`")
            raise
        return Definition(plan.spec, what, plan.misfire, plan.max_age, plan.overlap)

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

    async def _keeper(self) -> Keeper:
        return Keeper(self._keys, self._office.clock, await self._link.store())

    async def _there(self, keeper: Keeper, name: str) -> tuple[Schedule, Entry]:
        entry = await keeper.entry(name)
        if entry is None:
            some = await keeper.store.scan(self._keys.records, limit=20)
            known = sorted({*self.declared, *(key.removeprefix(self._keys.records) for key in some)})
            raise ConfigurationError(
                f"app `{self._office.name}` has no schedule `{name}`: "
                + (f"it has {', '.join(known)}" if known else "it has none")
            )
        return schedule_of(entry), entry

    async def _change(self, name: str, change: Callable[[Schedule], Schedule]) -> None:
        keeper = await self._keeper()
        while True:
            schedule, entry = await self._there(keeper, name)
            if (changed := change(schedule)) == schedule or await keeper.put(changed, entry):
                return


def _resumed(schedule: Schedule, now: float) -> Schedule:
    if not schedule.paused:
        return schedule
    after = schedule.after(now)
    return msgspec.structs.replace(schedule, paused=False, due=schedule.due if after is None else after)
