"""Publish: a message becomes a row for each subscription that its topic reaches, and one in the log if it is retained.

In an ordered subscription a key's messages stand in a *lane*. Only the head of a lane can be claimed; all others are
*blocked*: their `visible_at` is beyond any time, and `due` keeps their own. Whatever adds to a lane or takes its head
away ends with `unblock`, which gives each lane's head its time. So a claim is the same one indexed statement for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from carteiro.backends.sqlite.session import BLOCKED, Session, micros
from carteiro.backends.sqlite.statements import (
    BARE_WIDTH,
    DELIVERY_COLUMNS,
    DESCRIBED_WIDTH,
    LOG_COLUMNS,
    insert,
    steps,
)
from carteiro.message import Outgoing

_encode = msgspec.json.Encoder().encode


def publish(session: Session, messages: Iterable[Outgoing]) -> list[Outgoing]:
    """Fan out in the order given; returns those that no group and no log gets."""
    deliveries: list[tuple[Any, ...]] = []
    log: list[tuple[Any, ...]] = []
    lanes: set[tuple[int, str]] = set()
    unrouted: list[Outgoing] = []
    now = session.now
    next_log_id = 0
    described = False
    for message in messages:
        targets = session.routes.targets(message.topic)
        if not targets.concurrent and not targets.ordered and targets.duration is None:
            unrouted.append(message)
            continue
        # Only what someone gets leaves a mark: what was refused for want of a group can be published again.
        if message.dedupe is not None and not _is_first(session, message, message.dedupe):
            continue
        id, topic, body, key = message.id, message.topic, message.body, message.key
        headers = encode_headers(message.headers)
        correlation_id = None if message.correlation_id == id else message.correlation_id
        due = now + micros(message.delay) if message.delay else now
        log_id = None
        if targets.duration is not None:
            next_log_id = log_id = next_log_id + 1 if next_log_id else _next_log_id(session)
            log.append((log_id, topic, now, due, now + targets.duration, id, key, headers, correlation_id, body))
        described = described or not (key is None and headers is None and correlation_id is None)
        for target in targets.concurrent:
            deliveries.append((target, due, now, id, topic, body, key, headers, correlation_id, log_id, None, None))  # noqa: PERF401
        for target in targets.ordered:
            row: tuple[Any, ...]
            if key is None:
                row = (target, due, now, id, topic, body, key, headers, correlation_id, log_id, None, None)
            else:
                lanes.add((target, key))
                row = (target, BLOCKED, now, id, topic, body, key, headers, correlation_id, log_id, key, due)
            deliveries.append(row)
    _insert(session, "log", LOG_COLUMNS, log)
    # Columns that are NULL in every row cost a third of an insert: the batch takes no more than it needs.
    width = len(DELIVERY_COLUMNS) if lanes or log else DESCRIBED_WIDTH if described else BARE_WIDTH
    _insert(session, "deliveries", DELIVERY_COLUMNS[:width], deliveries)
    unblock(session, lanes)
    return unrouted


def unblock(session: Session, lanes: Iterable[tuple[int, str]]) -> None:
    """Give the head of each lane (subscription, key) its due time, if it was blocked."""
    wanted = list(lanes)
    if wanted:
        session.run("unblock_lanes", (_encode(wanted).decode(),))


def encode_headers(headers: Mapping[str, str]) -> str | None:
    return _encode(dict(headers)).decode() if headers else None


def _is_first(session: Session, message: Outgoing, window: float) -> bool:
    mark = {"topic": message.topic, "id": message.id, "now": session.now, "expires_at": session.now + micros(window)}
    return session.run("mark", mark).rowcount == 1


def _next_log_id(session: Session) -> int:
    row = session.run("last_log_id").fetchone()
    return 1 if row is None else row[0] + 1


def _insert(session: Session, table: str, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
    start, width = 0, len(columns)
    for step in steps(len(rows)):
        part = rows[start : start + step]
        session.connection.execute(insert(table, columns, step), [value for row in part for value in row[:width]])
        start += step
