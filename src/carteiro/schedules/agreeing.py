"""From the code to the store: what is gone from the code is removed there, and what has changed is changed.

The store knows the names of those that are in the code. One that is new is noted among them before it is there, and one
that is gone until it is: a crash in between leaves a name without a schedule, and no schedule that nobody removes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

import msgspec

from carteiro.message import Write
from carteiro.ports.store import Entry
from carteiro.schedules.declaring import Plan
from carteiro.schedules.keeping import Keeper
from carteiro.schedules.records import Definition, Schedule, pack, schedule_of

log = logging.getLogger("carteiro.schedules")

Define = Callable[[Plan], Definition]
"""What the store is to keep of a schedule that is declared."""


async def agree(keeper: Keeper, declared: Mapping[str, Plan], define: Define) -> None:
    """Have the store hold what the code says. What somebody has paused stays so."""
    store, key = keeper.store, keeper.keys.in_code
    names = frozenset(declared)
    while True:
        entry = (await store.get((key,))).get(key)
        before = frozenset[str]() if entry is None else _names(entry.value)
        version = 0 if entry is None else entry.version
        if names <= before:
            await _agree_on(keeper, before, declared, define)
        if names == before:
            return
        noted = names if names < before else names | before
        if (await store.write([Write(key, pack(sorted(noted)), expect=version)]))[0] and noted is names:
            return


async def _agree_on(keeper: Keeper, names: Iterable[str], declared: Mapping[str, Plan], define: Define) -> None:
    records = {name: keeper.keys.record(name) for name in names}
    found = await keeper.store.get(list(records.values()))
    hints = set[str | None]()
    for name, key in records.items():
        if name in declared:
            hints.add(await _agree_on_one(keeper, name, define(declared[name]), found.get(key)))
        elif key in found and (schedule := schedule_of(found[key])).in_code:
            log.info("schedule `%s` is gone from the code, and is removed", name)
            await keeper.remove(schedule)
    if due := sorted(hint for hint in hints if hint is not None):
        await keeper.store.write([Write(hint, b"", expect=0) for hint in due])  # should anybody have lost one
        await keeper.ring(due[0])


async def _agree_on_one(keeper: Keeper, name: str, definition: Definition, entry: Entry | None) -> str | None:
    """Returns its entry in the index."""
    while True:
        before = None if entry is None else schedule_of(entry)
        if before is not None and before.in_code and before.definition == definition:
            return keeper.keys.due(before)
        schedule = keeper.new(name, definition, in_code=True)
        if before is not None:
            schedule = _changed(before, definition, keeper.clock.time())
        if await keeper.write(schedule, entry):
            log.info("schedule `%s`: %s", name, definition.spec)
            return keeper.keys.due(schedule)
        entry = await keeper.entry(name)


def _changed(before: Schedule, definition: Definition, now: float) -> Schedule:
    """What was due and not fired yet is due now; the rest is as the new definition says."""
    same = before.definition.spec == definition.spec
    anchor = before.anchor if same else now
    due = before.due
    if not same and (due is None or due > now):
        due = definition.spec.after(now, anchor)
    return msgspec.structs.replace(before, definition=definition, in_code=True, anchor=anchor, due=due, queued=None)


_names = msgspec.msgpack.Decoder(frozenset[str]).decode
