"""How it stands with what a schedule has sent: a task, a run, or a message of which nothing more is known.

Where it matters whether the last one is over, a *mark* is there from the moment at which it is sent: for a task its
record, for a run that it is open. Both are what workers write over or take away when it ends.
"""

from __future__ import annotations

from carteiro.message import Write
from carteiro.ports.store import Entry
from carteiro.schedules.records import Last, What
from carteiro.tasks.records import (
    OPEN_TTL,
    RUN_TTL,
    Record,
    node_id,
    open_key,
    pack,
    record_of,
    task_key,
)


def mark(what: What, id: str, now: float) -> Write:
    """That it is not over, unless something is known of it already."""
    if what.kind == "run":
        return Write(open_key(id), b"", ttl=OPEN_TTL, expect=0)
    record = Record("pending", what.task, now, what.draft.topic, sent=now)
    return Write(task_key(id), pack(record), ttl=RUN_TTL, expect=0)


def mark_key(what: What, id: str) -> str:
    """Where the store says that it is not over."""
    return open_key(id) if what.kind == "run" else task_key(id)


def is_busy(what: What, entry: Entry | None) -> bool:
    """Whether what is there, at its `mark_key`, says that it is not over."""
    if what.kind == "run":
        return entry is not None
    record = record_of(entry)
    return record is not None and not record.is_over


def outcome_key(what: What, id: str) -> str | None:
    """Where the store says how it ended, if it does."""
    if what.kind == "message":
        return None
    return task_key(node_id(id, 0) if what.kind == "run" else id)


def outcome(what: What, last: Last, entry: Entry | None) -> str:
    """In a word: `sent` is all that is known of a message, and of a task that nobody has begun or that is forgotten."""
    if last.skipped:
        return "skipped"
    record = record_of(entry)
    return "sent" if record is None else record.status
