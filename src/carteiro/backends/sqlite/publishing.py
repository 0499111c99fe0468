"""Publish: a message becomes a row for each subscription that its topic reaches, and one in the log if it is retained.

In an ordered subscription a key's messages stand in a *lane*. Only the head of a lane can be claimed; all others are
*blocked*: their `visible_at` is beyond any time, and `due` keeps their own. Whatever adds to a lane or takes its head
away ends with `unblock`, which gives each lane's head its time. So a claim is the same one indexed statement for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from carteiro.backends.sqlite.routes import Targets
from carteiro.backends.sqlite.session import Session, micros
from carteiro.message import Outgoing
from carteiro.ports.records import pack

_encode = msgspec.json.Encoder().encode

_AT_ONCE: Final = 16 * 1024 * 1024
"""Bytes of records after which a batch is cut: SQLite takes no value of 1 GB."""


def publish(session: Session, messages: Iterable[Outgoing]) -> list[Outgoing]:
    """Fan out in the order given; returns those that no group and no log gets."""
    targets = session.routes.targets
    return fan_out(session, [(message, targets(message.topic)) for message in messages])


def fan_out(session: Session, messages: Iterable[tuple[Outgoing, Targets]]) -> list[Outgoing]:
    """As `publish`, to whom is told."""
    unrouted: list[Outgoing] = []
    kept: list[Outgoing] = []
    places: list[tuple[Targets, int]] = []
    records: list[bytes] = []
    now, published = session.now, session.now / 1_000_000
    size = 0
    for message, targets in messages:
        if targets.nobody:
            unrouted.append(message)
            continue
        # Only what someone gets leaves a mark: what was refused for want of a group can be published again.
        if message.dedupe is not None and not _is_first(session, message, message.dedupe):
            continue
        record = pack(message, published)
        kept.append(message)
        places.append((targets, now + micros(message.delay) if message.delay else now))
        records.append(record)
        size += len(record)
        if size > _AT_ONCE:
            _write(session, kept, places, records)
            kept, places, records, size = [], [], [], 0
    if kept:
        _write(session, kept, places, records)
    return unrouted


def unblock(session: Session, lanes: Iterable[tuple[int, str]]) -> None:
    """Give the head of each lane (subscription, lane) its due time, if it was blocked."""
    wanted = list(lanes)
    if wanted:
        session.run("unblock_lanes", (_json(wanted),))


def lane_of(key: str | None) -> str | None:
    """The lane in which a key's messages stand. SQLite's JSON ends a text at its first NUL, so a lane has none."""
    return None if key is None else key.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _write(
    session: Session, messages: Sequence[Outgoing], places: Sequence[tuple[Targets, int]], records: Sequence[bytes]
) -> None:
    spans = spans_of(records)
    joined = b"".join(records)
    targets, due = places[0]
    if not targets.ordered and targets.duration is None and places.count(places[0]) == len(places):
        # What nearly every batch is, at half the cost.
        same = {"due": due, "now": session.now, "records": joined, "spans": _json(spans)}
        for target in targets.concurrent:
            session.run("deliver", {"subscription": target, **same})
        return
    _write_each(session, messages, places, joined, spans)


def _write_each(
    session: Session,
    messages: Sequence[Outgoing],
    places: Sequence[tuple[Targets, int]],
    records: bytes,
    spans: Sequence[int],
) -> None:
    rows: list[tuple[Any, ...]] = []
    log: list[tuple[Any, ...]] = []
    lanes: set[tuple[int, str]] = set()
    next_log_id = 0
    for message, (targets, due), span in zip(messages, places, spans, strict=True):
        lane = lane_of(message.key)
        log_id = None
        if targets.duration is not None:
            next_log_id = log_id = next_log_id + 1 if next_log_id else _next_log_id(session)
            log.append((span, log_id, message.topic, due, session.now + targets.duration, lane))
        rows += [(span, target, due, None, log_id) for target in targets.concurrent]
        rows += [(span, target, due, lane, log_id) for target in targets.ordered]
        if lane is not None:
            lanes.update((target, lane) for target in targets.ordered)
    if log:
        session.run("log", {"now": session.now, "records": records, "rows": _json(log)})
    if rows:
        session.run("deliver_each", {"now": session.now, "records": records, "rows": _json(rows)})
    unblock(session, lanes)


def spans_of(records: Sequence[bytes]) -> list[int]:
    """Where each record lies when they are joined, as `statements.sql` wants it."""
    spans: list[int] = []
    start = 1
    for record in records:
        size = len(record)
        spans.append(start << 31 | size)
        start += size
    return spans


def _is_first(session: Session, message: Outgoing, window: float) -> bool:
    mark = {"topic": message.topic, "id": message.id, "now": session.now, "expires_at": session.now + micros(window)}
    return session.run("mark", mark).rowcount == 1


def _next_log_id(session: Session) -> int:
    row = session.run("last_log_id").fetchone()
    return 1 if row is None else row[0] + 1


def _json(value: Any) -> str:
    return _encode(value).decode()
