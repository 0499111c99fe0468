"""Cancelling a task for good, whether a worker has it or not."""

from __future__ import annotations

import msgspec

from carteiro.message import Join, Write
from carteiro.ports.clock import Clock
from carteiro.ports.store import Store
from carteiro.tasks.records import RUN_TTL, Record, failed_key, notice_key, open_key, pack, record_of, task_key


async def cancel(store: Store, clock: Clock, id: str, known: Record, *, app: str | None) -> bool:
    """Write that it is over, and have the workers of `app` look after what they run. False if it was over already.

    `known` is what the record is to say where there is none yet. Without `app` no worker is told: the one that runs it
    finds out when the task ends.
    """
    key = task_key(id)
    run, _, node = id.rpartition(".")
    is_run = bool(run) and node == "0"
    if is_run:
        # Taken by the cancel, so that no part of the run which fails from here on writes its failure over it.
        await store.join([Join(failed_key(run, 0), "failed", "cancelled", 1, ttl=RUN_TTL)])
    while True:
        entry = (await store.get((key,))).get(key)
        record = record_of(entry)
        if record is not None and record.is_over:
            return False
        over = msgspec.structs.replace(record or known, status="cancelled", at=clock.time(), until=None)
        write = Write(key, pack(over), ttl=RUN_TTL, expect=0 if entry is None else entry.version)
        if (await store.write([write]))[0]:
            if is_run:
                await store.write([Write(open_key(run), None)])
            if app is not None:
                await store.write([Write(notice_key(app), b"")])
            return True
