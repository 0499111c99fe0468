"""Keeping what a run is made of for as long as the run lasts, and no longer.

Its nodes, scopes and results are written with an end of `PART_TTL`, and go by themselves once it is over. A run that
takes longer is *open*: it has a key of its own until its final node is over. Every `PERIOD` one of the workers that use
the store looks through the open runs and moves those ends on. Most runs are over before that, and cost nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Final

from carteiro.errors import BrokerUnavailable
from carteiro.message import Write
from carteiro.ports.clock import Clock
from carteiro.ports.store import Entry, Store
from carteiro.tasks.graph import unpack_node
from carteiro.tasks.records import (
    OPEN,
    PART_TTL,
    node_id,
    node_key,
    open_key,
    record_of,
    run_key,
    run_of,
    scope_key,
    task_key,
)

log = logging.getLogger("carteiro.tasks")

PERIOD: Final = PART_TTL / 7  # a day
AT_ONCE: Final = 500
_TURN: Final = "tending"
"""Written by whoever tends, with an end: for so long nobody else needs to."""


class Tending:
    """Does it for one worker."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._clock.sleep(PERIOD)
            try:
                if (await self._store.write([Write(_TURN, b"", ttl=PERIOD / 2, expect=0)]))[0]:
                    for key in await self._store.scan(OPEN):
                        await self._tend(key.removeprefix(OPEN))
            except asyncio.CancelledError:
                raise
            except BrokerUnavailable as error:
                log.warning("runs that take long are looked after later: %s", error)
            except Exception:
                log.exception("runs that take long cannot be looked after")

    async def _tend(self, run: str) -> None:
        """Move the ends of its parts on, if they are near enough."""
        found = await self._store.get((run_key(run),))
        if run_key(run) not in found:
            await self._store.write([Write(open_key(run), None)])
            return
        info = run_of(found[run_key(run)])
        if self._clock.time() - info.created < PART_TTL / 4:
            return
        await self._renew(found)
        scopes: set[int] = set()
        for start in range(0, info.nodes, AT_ONCE):
            ids = [node_id(run, number) for number in range(start, min(start + AT_ONCE, info.nodes))]
            nodes = await self._store.get([node_key(id) for id in ids])
            for entry in nodes.values():
                scopes |= set(unpack_node(entry.value).scopes)
            await self._renew(nodes)
            records = await self._store.get([task_key(id) for id in ids])
            await self._renew({key: entry for key, entry in records.items() if _is_over(entry)})
        await self._renew(await self._store.get([scope_key(run, exit) for exit in scopes]))

    async def _renew(self, entries: Mapping[str, Entry]) -> None:
        writes: Iterable[Write] = (
            Write(key, entry.value, ttl=PART_TTL, expect=entry.version) for key, entry in entries.items()
        )
        await self._store.write(list(writes))


def _is_over(entry: Entry) -> bool:
    record = record_of(entry)
    return record is not None and record.is_over
