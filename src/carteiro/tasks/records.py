"""What the store keeps of tasks: the record of each, and the names under which things are kept.

    (nothing)        it waits in its queue, or was never sent
    retrying         an attempt has failed, and it waits in the broker for the next
    waiting          it waits for an event, see `steps.py`
    succeeded, failed, cancelled, expired        it is *over*: nothing changes its record any more

A record is written in the commit of the settle that it tells of, and only over the version that the attempt has read:
who cancels a task and who ends it cannot both believe that they did. That a task runs is not in its record: a worker
says it, for what runs longer than a moment, under a key of its own that ends with the worker.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from carteiro.errors import BrokerCorrupted
from carteiro.message import CONTENT_TYPE, EXPIRES_AT, TYPE
from carteiro.ports.store import Entry

Status = Literal["pending", "running", "retrying", "waiting", "succeeded", "failed", "cancelled", "expired"]

OVER: Final = frozenset({"succeeded", "failed", "cancelled", "expired"})

# Header names on the wire, beside those of message.py.
RUN: Final = "run"
"""The run that the task is a node of; its id is then `<run>.<node>`."""
UNIQUE: Final = "unique"
"""The store's key of a unique task: freed when it is over."""
RETRY: Final = "retry"
"""The policy of this one task in place of its kind's, as JSON."""
RESUME: Final = "resume"
"""How often the task has gone on after an event: a copy with a lower number than the newest is none any more."""

BEGAN: Final = "began"
"""On a message that takes a task up again: when the task was published first, in seconds since the epoch."""
ALARM: Final = "alarm"
"""On such a message, if there is one: when the last of the task's older copies comes, in seconds since the epoch."""
RESERVED: Final = frozenset({RUN, UNIQUE, RETRY, RESUME, BEGAN, ALARM, TYPE, EXPIRES_AT, CONTENT_TYPE})
"""Headers that no call may give."""

PART_TTL: Final = 7 * 86_400.0
"""Seconds for which the parts of a run are kept, and moved on while it is open and a worker is up: see `tending.py`."""
RUN_TTL: Final = 90 * 86_400.0
"""Seconds for which what somebody still waits for is kept: between two members of a join, for one."""
OPEN: Final = "open:"
"""Begins the key of a run that is not over."""
OPEN_TTL: Final = 365 * 86_400.0
"""Seconds that a run may take: one that was never begun, for its caller died, is kept no longer."""


class Flaw(msgspec.Struct, frozen=True, array_like=True):
    """An error as it travels: the type as `module:qualname`, the text, and its arguments and attributes, as JSON
    `[[...], {...}]`, if that can hold them.
    """

    kind: str
    text: str
    holds: bytes | None = None
    traceback: str = ""


class Record(msgspec.Struct, frozen=True, array_like=True):
    """What is known of one task. `at` is when it came to its status, in seconds since the epoch; `result` is JSON."""

    status: Status
    task: str
    at: float
    topic: str = ""
    attempt: int = 1
    result: bytes = b""
    flaw: Flaw | None = None
    worker: str = ""
    sent: float = 0.0
    """When it was published."""
    until: float | None = None
    """When it goes on by itself: the next attempt, or the end of its waiting."""
    waits_for: str = ""
    """The event's topic."""
    resumed: int = 0
    """How often it went on after an event."""

    @property
    def is_over(self) -> bool:
        return self.status in OVER


class Running(msgspec.Struct, frozen=True, array_like=True):
    """That a task runs, since when (seconds since the epoch) and where."""

    task: str
    since: float
    attempt: int
    topic: str
    worker: str
    sent: float


class Progress(msgspec.Struct, frozen=True):
    """How far a task is: `done` of `total`, both in the task's own unit, and a word on it. `at` is an epoch time."""

    done: float
    total: float | None = None
    note: str | None = None
    at: float = 0.0


class RunInfo(msgspec.Struct, frozen=True):
    """What a run is. `outline` is what `workflow show` draws."""

    name: str
    created: float
    nodes: int
    outline: Any


def task_key(id: str) -> str:
    return f"task:{id}"


def node_key(id: str) -> str:
    return f"node:{id}"


def node_id(run: str, number: int) -> str:
    return f"{run}.{number}"


def scope_key(run: str, exit: int) -> str:
    return f"scope:{run}.{exit}"


def join_key(run: str, node: int) -> str:
    return f"join:{run}.{node}"


def failed_key(run: str, exit: int) -> str:
    return f"join:{run}.{exit}:failed"


def run_key(run: str) -> str:
    return f"run:{run}"


def open_key(run: str) -> str:
    return f"{OPEN}{run}"


def running_key(id: str) -> str:
    return f"running:{id}"


def progress_key(id: str) -> str:
    return f"progress:{id}"


def step_key(id: str, name: str) -> str:
    return f"step:{id}:{name}"


def notice_key(app: str) -> str:
    """Written whenever something that may be running is over: each worker then looks after what it runs."""
    return f"over:{app}"


def found_key(app: str) -> str:
    """The queues and events that the code does not name, see `queues.py`."""
    return f"found:{app}"


pack = msgspec.msgpack.Encoder().encode

_record = msgspec.msgpack.Decoder(Record).decode
_running = msgspec.msgpack.Decoder(Running).decode
_progress = msgspec.msgpack.Decoder(Progress).decode
_run = msgspec.msgpack.Decoder(RunInfo).decode


def record_of(entry: Entry | None) -> Record | None:
    """Raises BrokerCorrupted for what is no record."""
    if entry is None:
        return None
    try:
        return _record(entry.value)
    except msgspec.DecodeError as error:
        raise BrokerCorrupted(
            f"the record of a task cannot be read ({error}): restore the store, or delete it"
        ) from error


def running_of(entry: Entry) -> Running:
    return _running(entry.value)


def progress_of(entry: Entry) -> Progress:
    return _progress(entry.value)


def run_of(entry: Entry) -> RunInfo:
    return _run(entry.value)
