"""What comes after a node of a run has ended: the nodes that follow, or the end of the scopes that it was in.

The message to a node carries its id and no more, but for the result of a lone predecessor that is small: so its worker
need not look that up. A node with several predecessors is joined: the message goes out with the last of them, in the
same commit. What is told twice after a crash has the same ids, and joins know who told them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from carteiro.errors import NoResult
from carteiro.handlers.codecs import encode
from carteiro.message import EXPIRES_AT, TYPE, Join, Outgoing, Write
from carteiro.ports.store import Entry
from carteiro.tasks.flaws import marker, told
from carteiro.tasks.graph import Edge, Node, Scope
from carteiro.tasks.records import (
    RUN,
    RUN_TTL,
    Record,
    failed_key,
    join_key,
    node_id,
    notice_key,
    open_key,
    pack,
    record_of,
    task_key,
)

GATHER_TASK: Final = "carteiro.gather"
"""The type of a gather's message."""
SMALL: Final = 8_192
"""Bytes of a result that goes along with the message to the next node."""


class Followed(msgspec.Struct):
    """What goes into the outcome of a node."""

    emits: list[Outgoing] = []
    joins: list[Join] = []
    writes: list[Write] = []


class Sender:
    """Makes the messages of one run. `broker_of` names the broker of a topic; `now` is in seconds since the epoch."""

    def __init__(self, run: str, correlation_id: str, broker_of: Callable[[str], str | None], now: float) -> None:
        self.run = run
        self._now = now
        self._correlation_id = correlation_id
        self._broker_of = broker_of

    def to(self, edge: Edge, body: bytes = b"") -> Outgoing:
        """The message that starts the node at the end of `edge`."""
        headers = {**(edge.headers or {}), TYPE: edge.task or GATHER_TASK, RUN: self.run}
        delay = edge.delay if edge.at is None else max(0.0, edge.at - self._now)
        if edge.expires is not None:
            headers[EXPIRES_AT] = repr(self._now + delay + edge.expires)
        return Outgoing(
            node_id(self.run, edge.node), edge.topic, body, edge.key, headers, self._correlation_id, delay,
            broker=self._broker_of(edge.topic),
        )  # fmt: skip

    def follow(self, edges: Iterable[Edge], member: int, actor: int, body: bytes, into: Followed) -> None:
        """Tell those who wait for `member` that it has ended, as `actor` says."""
        for edge in edges:
            if edge.size == 1 and member == actor:
                into.emits.append(self.to(edge, body))
                continue
            into.joins.append(
                Join(
                    join_key(self.run, edge.node),
                    str(member),
                    str(actor),
                    edge.size,
                    emits=[self.to(edge, body if edge.size == 1 else b"")],
                    ttl=RUN_TTL,
                )
            )


def after_success(sender: Sender, number: int, node: Node, result: bytes) -> Followed:
    followed = Followed()
    sender.follow(node.next, number, number, result if len(result) <= SMALL else b"", followed)
    if number == 0:
        followed.writes.append(Write(open_key(sender.run), None))
    return followed


def after_failure(
    sender: Sender, number: int, node: Node, scopes: Mapping[int, Scope], record: Record, app: str, ttl: float
) -> Followed:
    """`record` is that of the node, which has failed for good; each scope that fails with it gets one like it."""
    assert record.flaw is not None
    followed = Followed()
    failure = encode(told(record.flaw, record.task, node_id(sender.run, number)))[0]
    for edge in node.on_error:
        followed.emits.append(sender.to(edge, failure))
    for exit in node.scopes:
        scope = scopes[exit]
        followed.joins.append(
            Join(
                failed_key(sender.run, exit),
                "failed",
                str(number),
                1,
                emits=[sender.to(edge, failure) for edge in scope.on_error],
                writes=[
                    Write(task_key(node_id(sender.run, exit)), pack(record), ttl=ttl),
                    *([] if exit else [Write(open_key(sender.run), None)]),
                ],
                ttl=RUN_TTL,
            )
        )
        if scope.collects:
            sender.follow(scope.next, exit, number, b"", followed)
            break
    if node.scopes not in ((), (number,)):
        followed.writes.append(Write(notice_key(app), b""))  # others of these scopes may be running
    return followed


def taken(takes: int | Sequence[Any], run: str, found: Mapping[str, Entry]) -> bytes:
    """What a node takes, as JSON; a lone one that failed is a failure for an error callback.

    Raises NoResult where the result of a predecessor is there no more.
    """
    if not isinstance(takes, int):
        return _listed(takes, run, found)
    id, record = _ended(takes, run, found)
    return record.result if record.flaw is None else encode(told(record.flaw, record.task, id))[0]


def _listed(takes: int | Sequence[Any], run: str, found: Mapping[str, Entry]) -> bytes:
    if not isinstance(takes, int):
        return b"[" + b",".join(_listed(one, run, found) for one in takes) + b"]"
    id, record = _ended(takes, run, found)
    return record.result if record.flaw is None else marker(record.flaw, record.task, id)


def _ended(number: int, run: str, found: Mapping[str, Entry]) -> tuple[str, Record]:
    id = node_id(run, number)
    record = record_of(found.get(task_key(id)))
    if record is None or not record.is_over:
        raise NoResult(f"the result of `{id}`, which comes before, is not there: it has expired")
    return id, record


def nodes_in(takes: int | Sequence[Any]) -> Iterable[int]:
    """The numbers of the nodes whose results are taken."""
    if isinstance(takes, int):
        yield takes
    else:
        for one in takes:
            yield from nodes_in(one)
