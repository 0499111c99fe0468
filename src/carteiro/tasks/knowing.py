"""What the store says of a task before it runs: whether it is over, what it is a node of, what it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from carteiro.message import Message
from carteiro.ports.store import Entry
from carteiro.tasks.bench import Bench
from carteiro.tasks.following import nodes_in, taken
from carteiro.tasks.graph import Node, unpack_node
from carteiro.tasks.records import RESUME, RUN, Record, node_id, node_key, record_of, task_key


class Known(msgspec.Struct):
    """`record` is its own, and `version` that of its entry; `run`, `number` and `node` are those of a part of a run.

    `taken` is what goes before the node's arguments, as JSON. `heard` is the bench's from before the records were read.
    """

    record: Record | None = None
    version: int = 0
    run: str | None = None
    number: int = 0
    node: Node | None = None
    is_over: bool = False
    taken: bytes | None = None
    heard: int = 0


NOTHING: Final = Known()
"""For a task that keeps nothing."""


def keys_of(message: Message) -> tuple[str, ...]:
    """Of what `known_of` needs."""
    run, own = message.headers.get(RUN), task_key(message.id)
    return (own,) if run is None else (own, task_key(node_id(run, 0)), node_key(message.id))


def known_of(message: Message, found: Mapping[str, Entry], heard: int) -> Known:
    """By what there is under its keys; for a node that takes what is not in its message `take` reads more.

    `heard` is the bench's from before that was read.
    """
    id, run = message.id, message.headers.get(RUN)
    entry = found.get(task_key(id))
    record = record_of(entry)
    if run is None:
        if entry is None:
            return Known(heard=heard)
        known = Known(record, entry.version, heard=heard)
        known.is_over = _is_over(message, record)
        if record is not None and record.status == "failed" and message.attempt == 1:
            # A dead letter that was sent again: what is dead comes back in no other way. An alarm is late, though.
            known.is_over = resumed(message) < record.resumed
        return known
    known = Known(record, 0 if entry is None else entry.version, run, int(id.rpartition(".")[2]), heard=heard)
    if node_key(id) in found:
        known.node = unpack_node(found[node_key(id)].value)
    ended = record_of(found.get(task_key(node_id(run, 0))))
    in_it = known.node is not None and 0 in known.node.scopes
    known.is_over = _is_over(message, record) or (
        ended is not None and ended.is_over and (in_it or ended.status == "cancelled")
    )
    return known


async def take(bench: Bench, message: Message, known: Known, node: Node) -> None:
    """Fill in what the node takes, and whether any of its inner scopes is over. Raises NoResult."""
    assert known.run is not None
    scopes = [task_key(node_id(known.run, exit)) for exit in node.scopes if exit]
    wanted = list(scopes)
    if isinstance(node.takes, int) and message.body:
        known.taken = message.body
    elif node.takes is not None:
        wanted += (task_key(node_id(known.run, number)) for number in nodes_in(node.takes))
    found: Mapping[str, Entry] = await bench.get(wanted) if wanted else {}
    ended = (record_of(found.get(key)) for key in scopes)
    if any(record is not None and record.is_over for record in ended):
        known.is_over = True
    elif node.takes is not None and known.taken is None:
        known.taken = taken(node.takes, known.run, found)


def resumed(message: Message) -> int:
    """How often the task has gone on after an event, as this copy of it says."""
    return int(message.headers.get(RESUME, 0))


def _is_over(message: Message, record: Record | None) -> bool:
    """Whether its record says that it is over, or that this copy of it has a newer one."""
    return record is not None and (record.is_over or resumed(message) < record.resumed)
