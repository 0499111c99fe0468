"""What an operator asks of runs: how far each is, and the state of every part.

The store says how a node ended, or that it runs. Of one that it says nothing of, the graph tells the rest: it will not
run if a scope that it is in is over, or if what is to start it has ended in another way; then it was *skipped*.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from carteiro.ports.store import Entry, Store
from carteiro.tasks.cancelling import cancel
from carteiro.tasks.graph import Node, Outline, Scope, unpack_node, unpack_scope
from carteiro.tasks.inspecting import Inspection, TaskState, original, place_of
from carteiro.tasks.records import (
    Progress,
    Record,
    RunInfo,
    Running,
    Status,
    node_id,
    node_key,
    progress_key,
    progress_of,
    record_of,
    run_key,
    run_of,
    running_key,
    running_of,
    scope_key,
    task_key,
)

FINAL: Final = 0
"""The node whose result is the run's."""


class RunView(msgspec.Struct, frozen=True):
    """One run. Times are in seconds since the epoch."""

    id: str
    name: str
    status: Status
    created: float
    ended: float | None
    done: int
    """How many of its nodes have succeeded."""
    nodes: int
    error: str | None = None


class NodeView(msgspec.Struct, frozen=True):
    """One node of a run."""

    node: int
    id: str
    task: str
    """Empty for a gather, which only makes the list of what it takes."""
    status: TaskState
    attempt: int = 0
    sent: float | None = None
    at: float | None = None
    """When it came to its status."""
    worker: str = ""
    error: str | None = None
    progress: Progress | None = None


class RunDetails(msgspec.Struct, frozen=True):
    """A run and its nodes, by their numbers; `outline` is as in `Graph`."""

    run: RunView
    outline: Outline
    nodes: Mapping[int, NodeView]


class RunInspection:
    def __init__(self, inspection: Inspection) -> None:
        self._store: Store = inspection.store
        self._clock = inspection.clock

    async def runs(self, statuses: frozenset[Status], limit: int) -> tuple[list[RunView], bool]:
        """The newest so many of these statuses, of any where none is named, and whether there are more."""
        infos = {key.partition(":")[2]: run_of(entry) for key, entry in (await self._store.scan(run_key(""))).items()}
        found: list[RunView] = []
        for id, info in sorted(infos.items(), key=lambda one: one[1].created, reverse=True):
            view = await self._view(id, info, statuses)
            if view is not None:
                if len(found) == limit:
                    return found, True
                found.append(view)
        return found, False

    async def run(self, id: str) -> RunDetails | None:
        """None for one that there is not, or not any more."""
        key = run_key(id)
        entry = (await self._store.get((key,))).get(key)
        if entry is None:
            return None
        info = run_of(entry)
        nodes = {number: unpack_node(one.value) for number, one in (await self._parts(node_key(f"{id}."))).items()}
        kept = await self._parts(scope_key(id, FINAL).removesuffix(str(FINAL)))
        scopes = {exit: unpack_scope(one.value) for exit, one in kept.items()}
        records, running = await self._records(id), await self._running(id)
        states = states_of(nodes, scopes, records, running)
        told = await self._store.get([progress_key(node_id(id, number)) for number in running])
        views = {}
        for number, node in sorted(nodes.items()):
            progress = told.get(progress_key(node_id(id, number)))
            views[number] = _node_view(
                node_id(id, number), number, node, states[number], records.get(number), running.get(number),
                None if progress is None else progress_of(progress),
            )  # fmt: skip
        view = _run_view(id, info, records, bool(running))
        return RunDetails(view, info.outline, views)

    async def cancel(self, id: str) -> bool | None:
        """For good, with all that is left of it. False if it was over already, None if there is no such run."""
        found = await self._store.get((run_key(id), node_key(node_id(id, FINAL))))
        if len(found) < 2:
            return None
        edge = unpack_node(found[node_key(node_id(id, FINAL))].value).edge
        place = place_of(edge.topic)
        known = Record("cancelled", edge.task, 0.0, edge.topic)
        return await cancel(
            self._store, self._clock, node_id(id, FINAL), known, app=None if place is None else place.app
        )

    async def _view(self, id: str, info: RunInfo, statuses: frozenset[Status]) -> RunView | None:
        """None for one that is not asked for."""
        key = task_key(node_id(id, FINAL))
        final = record_of((await self._store.get((key,))).get(key))
        ended: Status | None = final.status if final is not None and final.is_over else None
        if statuses and statuses.isdisjoint(("pending", "running") if ended is None else (ended,)):
            return None
        view = _run_view(id, info, await self._records(id), ended is None and bool(await self._running(id)))
        return view if not statuses or view.status in statuses else None

    async def _records(self, run: str) -> dict[int, Record]:
        found = await self._parts(task_key(f"{run}."))
        return {number: record for number, entry in found.items() if (record := record_of(entry)) is not None}

    async def _running(self, run: str) -> dict[int, Running]:
        found = await self._parts(running_key(f"{run}."))
        return {number: running_of(entry) for number, entry in found.items()}

    async def _parts(self, prefix: str) -> dict[int, Entry]:
        """What the store has of a run under this beginning, by node."""
        found = {key.removeprefix(prefix): entry for key, entry in (await self._store.scan(prefix)).items()}
        return {int(number): entry for number, entry in found.items() if number.isdecimal()}


def states_of(
    nodes: Mapping[int, Node],
    scopes: Mapping[int, Scope],
    records: Mapping[int, Record],
    running: Mapping[int, object],
) -> dict[int, TaskState]:
    """The state of each node of a run, of which the store has these records, and that these run."""
    causes: dict[int, list[tuple[int, bool]]] = {}
    """By node, whose end starts it, and whether it is its failure."""
    for number, node in nodes.items():
        for edge in node.next:
            causes.setdefault(edge.node, []).append((number, False))
        for edge in node.on_error:
            causes.setdefault(edge.node, []).append((number, True))
    for exit, scope in scopes.items():
        for edge in scope.on_error:
            causes.setdefault(edge.node, []).append((exit, True))
    copies = _copies(records, nodes)
    states: dict[int, TaskState] = {}

    def never_starts(cause: int, by_failure: bool) -> bool:
        record = records.get(cause)
        if record is None or not record.is_over:
            return states.get(cause) == "skipped"
        if by_failure:
            return record.status not in ("failed", "expired")
        return record.status != "succeeded" and not (cause in scopes and scopes[cause].collects)

    def state(number: int, node: Node) -> TaskState:
        record = None if number in copies else records.get(number)
        if record is not None and record.is_over:
            return record.status
        if number in running:
            return "running"
        if any(exit in records and records[exit].is_over for exit in node.scopes):
            return "skipped" if record is None else "cancelled"
        if record is None:
            return "skipped" if any(never_starts(*cause) for cause in causes.get(number, ())) else "pending"
        return record.status

    # Those of the run itself first; then callbacks, each of which has a higher number than what it follows.
    for number in sorted(nodes, key=lambda one: (FINAL not in nodes[one].scopes, one)):
        states[number] = state(number, nodes[number])
    return states


def _copies(records: Mapping[int, Record], nodes: Mapping[int, Node]) -> set[int]:
    """The exits whose record is the failure of another node."""
    alike: dict[Record, list[int]] = {}
    for number, record in records.items():
        if record.flaw is not None:
            alike.setdefault(record, []).append(number)
    return {number for numbers in alike.values() for number in numbers if number != original(numbers, nodes)}


def _run_view(id: str, info: RunInfo, records: Mapping[int, Record], runs: bool) -> RunView:
    final = records.get(FINAL)
    is_over = final is not None and final.is_over
    return RunView(
        id,
        info.name,
        final.status if final is not None and is_over else "running" if records or runs else "pending",
        info.created,
        final.at if final is not None and is_over else None,
        sum(1 for record in records.values() if record.status == "succeeded"),
        info.nodes,
        None if final is None or final.flaw is None or not is_over else final.flaw.text,
    )


def _node_view(
    id: str,
    number: int,
    node: Node,
    status: TaskState,
    record: Record | None,
    running: Running | None,
    progress: Progress | None,
) -> NodeView:
    if status in ("pending", "skipped"):
        return NodeView(number, id, node.task, status)
    if status == "running" and running is not None:
        return NodeView(
            number, id, node.task, status, running.attempt, running.sent, running.since, running.worker,
            progress=progress,
        )  # fmt: skip
    assert record is not None
    if status != record.status:  # it waited for its next attempt, or for an event, when its run was over
        return NodeView(number, id, node.task, status, record.attempt)
    error = None if record.flaw is None else record.flaw.text
    return NodeView(
        number, id, node.task, status, record.attempt, record.sent or None, record.at, record.worker, error, progress
    )
