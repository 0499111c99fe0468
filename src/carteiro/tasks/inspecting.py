"""What an operator asks of tasks, and does to them: of all in one store, whichever app they are of.

Three places know of tasks. The *store* has the records of those that something has happened to, and says which run. The
*broker* has the messages of those that wait; it shows the next ones of each queue, and not those that wait for their
time. The *dead letters* have the messages of those that failed for good. A task that a worker has only just taken is
in none of them for a moment.

A scope of a run that fails has the failure written to its exit's record too, word for word: here such a *copy* is no
failed task of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from carteiro.errors import CarteiroError, UnsupportedFeature
from carteiro.message import DeadLetter, Message, Write
from carteiro.ports.broker import Inspector
from carteiro.ports.clock import Clock
from carteiro.ports.store import Entry, Store
from carteiro.tasks.cancelling import cancel
from carteiro.tasks.canvas import Priority
from carteiro.tasks.graph import Node, unpack_node
from carteiro.tasks.queues import PREFIX
from carteiro.tasks.records import (
    OVER,
    RUN,
    RUN_TTL,
    Progress,
    Record,
    Running,
    Status,
    node_id,
    node_key,
    progress_key,
    progress_of,
    record_of,
    run_key,
    running_key,
    running_of,
    task_key,
)
from carteiro.topics import dlq_name

LOOK: Final = 1_000
"""How many of those that wait are looked at, of each queue and priority."""

_AT_ONCE: Final = 1_000


class NotDone(CarteiroError):
    """Why what was asked of a task cannot be done, and what can."""


TaskState = Status | Literal["skipped"]
"""Of a part of a run also that it will not run any more."""


class Place(NamedTuple):
    """Where a task waits."""

    app: str
    queue: str
    priority: Priority


class TaskView(msgspec.Struct, frozen=True):
    """One task. Times are in seconds since the epoch; `at` is when it came to its status."""

    id: str
    task: str
    """Its name; empty where that is not known."""
    status: TaskState
    topic: str
    attempt: int
    at: float
    sent: float | None = None
    worker: str = ""
    until: float | None = None
    waits_for: str = ""
    run: str | None = None
    error: str | None = None
    progress: Progress | None = None

    @property
    def is_over(self) -> bool:
        return self.status in OVER

    @property
    def place(self) -> Place | None:
        return place_of(self.topic)


class Wanted(msgspec.Struct, frozen=True):
    """Which tasks are asked for. `since` is when they came to their status, at the earliest."""

    statuses: frozenset[Status] = frozenset()
    task: str | None = None
    queue: str | None = None
    since: float = 0.0

    def fits(self, view: TaskView) -> bool:
        if (self.statuses and view.status not in self.statuses) or self.task not in (None, view.task):
            return False
        if view.at < self.since:
            return False
        return self.queue is None or (view.place is not None and view.place.queue == self.queue)


class Sighted(msgspec.Struct, frozen=True):
    """The tasks that fit, the newest first."""

    tasks: Sequence[TaskView]
    unseen: int = 0
    """How many wait beside them in the queues asked for, of which the broker was asked no more or shows none."""
    later: int = 0
    """How many wait for their time, about."""


class TaskDetails(msgspec.Struct, frozen=True):
    """All that is known of one task."""

    view: TaskView
    record: Record | None = None
    node: Node | None = None
    message: Message | None = None
    """As it waits, or as it is dead."""
    letter: DeadLetter | None = None
    failed_with: str | None = None
    """The task whose failure its record holds, if that is another: it is the exit of a scope that failed."""


class Inspection:
    """Asks a store, and the broker whose tasks it keeps."""

    def __init__(self, store: Store, broker: Inspector, clock: Clock) -> None:
        self.store = store
        self.broker = broker
        self.clock = clock

    # -- looking -----------------------------------------------------------------------------------------------------

    async def tasks(self, wanted: Wanted, *, look: int = LOOK) -> Sighted:
        """It reads all records that the store has."""
        runs = {key.partition(":")[2] for key in await self.store.scan(run_key(""))}
        entries = await self.store.scan(task_key(""))
        running = {key.partition(":")[2]: entry for key, entry in (await self.store.scan(running_key(""))).items()}
        copies = await self._copies(entries, runs)
        found: dict[str, TaskView] = {}
        for key, entry in entries.items():
            id = key.partition(":")[2]
            record = record_of(entry)
            if record is not None and id not in copies:
                found[id] = _view(id, record, running_of(running[id]) if id in running else None, _run_of(id, runs))
        for id, entry in running.items():
            if id not in found:
                found[id] = _view(id, None, running_of(entry), _run_of(id, runs))
        found.update(await self._left_over(found, entries))
        unseen = later = 0
        if not wanted.statuses or not wanted.statuses.isdisjoint(("pending", "retrying", "cancelled")):
            messages, unseen, later = await self._waiting(wanted.queue, look)
            for message in messages:
                found[message.id] = _beside(message, found.get(message.id))
            later -= sum(1 for view in found.values() if view.status == "waiting")
        fit = [view for view in found.values() if wanted.fits(view)]
        fit.sort(key=lambda view: (view.at, view.id), reverse=True)
        return Sighted(fit, unseen, max(0, later))

    async def completed(self, views: Sequence[TaskView]) -> list[TaskView]:
        """With how far each is, and the names of those nodes that nothing was known of but their run's end."""
        nameless = [node_key(view.id) for view in views if not view.task and view.run is not None]
        found = await self._get([*(progress_key(view.id) for view in views), *nameless])
        complete = []
        for view in views:
            told, node = found.get(progress_key(view.id)), found.get(node_key(view.id))
            if told is not None:
                view = msgspec.structs.replace(view, progress=progress_of(told))  # noqa: PLW2901
            if node is not None:
                edge = unpack_node(node.value).edge
                view = msgspec.structs.replace(view, task=edge.task, topic=view.topic or edge.topic)  # noqa: PLW2901
            complete.append(view)
        return complete

    async def task(self, id: str) -> TaskDetails | None:
        """None for one that nothing is known of: it waits where the broker does not show it, or there is none."""
        run, _, _ = id.rpartition(".")
        found = await self._get([task_key(id), running_key(id), node_key(id)])
        entry, ran = found.get(task_key(id)), found.get(running_key(id))
        record = record_of(entry)
        node = unpack_node(found[node_key(id)].value) if node_key(id) in found else None
        message = letter = failed_with = None
        if record is not None and record.flaw is not None and node is not None:
            failed_with = await self._failed_with(run, node.edge.node, found[task_key(id)])
        if record is None or record.status == "failed":
            letter = None if failed_with is not None else await self._letter(id, record)
            message = None if letter is None else letter.message
        if letter is None and (record is None or not record.is_over):
            message = await self._message(id)
        if record is None and ran is None and message is None and node is None:
            return None
        running = None if ran is None else running_of(ran)
        view = _view(id, record, running, run if node is not None else None)
        if message is not None and letter is None:
            view = _beside(message, view if record is not None or ran is not None else None)
        elif letter is not None and record is None:
            view = _dead(letter)
        if node is not None and (not view.task or failed_with is not None):  # the rest is the other's
            view = TaskView(id, node.task, view.status, node.edge.topic, 1, view.at, run=run, error=view.error)
        (view,) = await self.completed([view])
        return TaskDetails(view, record, node, message, letter, failed_with)

    # -- stepping in -------------------------------------------------------------------------------------------------

    async def cancel(self, view: TaskView) -> bool:
        """For good. False if it was over already. Raises NotDone for a part of a run, which would wait for it."""
        if view.run is not None:
            raise NotDone(f"`{view.id}` is a part of the run `{view.run}`: `carteiro workflow cancel {view.run}`")
        place = view.place
        known = Record(
            "cancelled", view.task, 0.0, view.topic, view.attempt, worker=view.worker, sent=view.sent or 0.0
        )  # fmt: skip
        return await cancel(self.store, self.clock, view.id, known, app=None if place is None else place.app)

    async def retry(self, details: TaskDetails) -> None:
        """Send a failed task's dead letter to its queue again; it starts at attempt 1, after its last finished step.

        Raises NotDone for what has not failed, a part of a run, and what has no dead letter any more.
        """
        id, letter = details.view.id, details.letter
        if details.view.run is not None:
            raise NotDone(f"`{id}` is a part of the run `{details.view.run}`, which has gone on: start the run again")
        if details.view.status != "failed":
            raise NotDone(f"`{id}` has not failed, it is {details.view.status}: only what failed is tried again")
        if letter is None:
            raise NotDone(f"`{id}` has no dead letter any more, it was replayed or purged: send the task again")
        key = task_key(id)
        entry = (await self.store.get((key,))).get(key)
        if entry is not None:  # first: a worker that finds its task over does not run it
            await self.store.write([Write(key, None, expect=entry.version)])
        replayed = 0
        try:
            replayed = await self.broker.replay(letter.queue, ids=[letter.id])
        finally:
            if not replayed and entry is not None:
                await self.store.write([Write(key, entry.value, ttl=RUN_TTL, expect=0)])
        if not replayed:
            raise NotDone(f"`{id}` was replayed by another at this moment")

    # -- where they are found ----------------------------------------------------------------------------------------

    async def _get(self, keys: Sequence[str]) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        for start in range(0, len(keys), _AT_ONCE):
            found.update(await self.store.get(keys[start : start + _AT_ONCE]))
        return found

    async def _waiting(self, queue: str | None, look: int) -> tuple[list[Message], int, int]:
        """The next ones of each queue, how many more there are, and how many wait for their time."""
        messages: list[Message] = []
        unseen = later = 0
        for group in await self.broker.groups():
            place = place_of(group.topic)
            if place is None or place.app != group.group or queue not in (None, place.queue):
                continue
            later += group.delayed or 0
            if group.waiting:
                try:
                    shown = await self.broker.peek(group.topic, group.group, look)
                except UnsupportedFeature:
                    shown = []
                messages += shown
                unseen += max(0, group.waiting - len(shown))
        return messages, unseen, later

    async def _message(self, id: str) -> Message | None:
        messages, _, _ = await self._waiting(None, LOOK)
        return next((message for message in messages if message.id == id), None)

    async def _letter(self, id: str, record: Record | None) -> DeadLetter | None:
        """The newest of this task. A task that keeps no results has nothing else to tell that it failed."""
        queues: list[str | None] = [None]
        if record is not None and (place := place_of(record.topic)) is not None:
            queues = [dlq_name(record.topic), dlq_name(record.topic, place.app)]
        for queue in queues:
            letters = [letter for letter in await self.broker.dead_letters(queue) if letter.message.id == id]
            if letters and place_of(letters[-1].topic) is not None:
                return letters[-1]
        return None

    async def _copies(self, entries: Mapping[str, Entry], runs: set[str]) -> set[str]:
        """The ids of those whose record is a copy of another's, that failed in their scope."""
        alike: dict[tuple[str, bytes], list[int]] = {}
        for key, entry in entries.items():
            id = key.partition(":")[2]
            run = _run_of(id, runs)
            if run is not None and (record := record_of(entry)) is not None and record.flaw is not None:
                alike.setdefault((run, entry.value), []).append(int(id.rpartition(".")[2]))
        return {
            node_id(run, number)
            for (run, _), numbers in alike.items()
            for number in numbers
            if len(numbers) > 1 and number != await self._original(run, numbers)
        }

    async def _left_over(self, found: Mapping[str, TaskView], entries: Mapping[str, Entry]) -> dict[str, TaskView]:
        """As cancelled, those that wait for their next attempt or an event, and are in a scope that is over."""
        waiting = {
            node_key(id): view
            for id, view in found.items()
            if view.run is not None and view.status in ("retrying", "waiting")
        }
        over: dict[str, TaskView] = {}
        for key, node in (await self._get(list(waiting))).items():
            view = waiting[key]
            for exit in unpack_node(node.value).scopes:
                end = record_of(entries.get(task_key(f"{view.run}.{exit}")))
                if end is not None and end.is_over:
                    over[view.id] = msgspec.structs.replace(view, status="cancelled", at=end.at, until=None)
        return over

    async def _failed_with(self, run: str, number: int, entry: Entry) -> str | None:
        records = await self.store.scan(task_key(f"{run}."))
        alike = [int(key.rpartition(".")[2]) for key, one in records.items() if one.value == entry.value]
        first = await self._original(run, alike)
        return None if first in (None, number) else node_id(run, first)

    async def _original(self, run: str, numbers: Sequence[int]) -> int | None:
        found = await self.store.get([node_key(node_id(run, number)) for number in numbers])
        return original(numbers, {int(key.rpartition(".")[2]): unpack_node(one.value) for key, one in found.items()})


def place_of(topic: str) -> Place | None:
    """The queue behind a topic, if it is one of tasks."""
    prefix, _, rest = topic.partition(".")
    words = rest.split(".")
    if prefix != PREFIX or len(words) < 2:
        return None
    last = words[-1]
    if len(words) > 2 and last in ("high", "low"):
        return Place(".".join(words[:-2]), words[-2], "high" if last == "high" else "low")
    return Place(".".join(words[:-1]), last, "normal")


def original(numbers: Iterable[int], nodes: Mapping[int, Node]) -> int | None:
    """Of nodes of a run with the same failure that one which failed: the others are exits of scopes that it is in."""
    alike = set(numbers)
    return next((one for one in alike if one in nodes and alike <= {one, *nodes[one].scopes}), None)


def _run_of(id: str, runs: set[str]) -> str | None:
    run, _, number = id.rpartition(".")
    return run if number.isdecimal() and run in runs else None


def _view(id: str, record: Record | None, running: Running | None, run: str | None) -> TaskView:
    if running is not None and (record is None or not record.is_over):
        return TaskView(
            id, running.task, "running", running.topic, running.attempt, running.since, running.sent, running.worker,
            run=run,
        )  # fmt: skip
    if record is None:
        return TaskView(id, "", "pending", "", 1, 0.0, run=run)
    return TaskView(
        id, record.task, record.status, record.topic, record.attempt, record.at, record.sent or None, record.worker,
        record.until, record.waits_for, run, None if record.flaw is None else record.flaw.text,
    )  # fmt: skip


def _beside(message: Message, known: TaskView | None) -> TaskView:
    """A task whose message is in its queue; of one that was cancelled before, the record says no more than that."""
    run = message.id.rpartition(".")[0] if RUN in message.headers else None
    task = message.type or ""
    if known is None:
        return TaskView(
            message.id, task, "pending", message.topic, message.attempt, message.published, message.published, run=run
        )
    return msgspec.structs.replace(
        known, task=known.task or task, topic=known.topic or message.topic, sent=known.sent or message.published
    )


def _dead(letter: DeadLetter) -> TaskView:
    message = letter.message
    return TaskView(
        message.id, message.type or "", "failed", letter.topic, message.attempt, letter.at, message.published,
        error=letter.reason,
    )  # fmt: skip
