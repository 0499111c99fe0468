"""What an operator sees and does: the Inspector port.

What only looks runs beside the thread on a connection of its own: counting a million rows stops no worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import msgspec

from carteiro.backends.sqlite.database import Database
from carteiro.backends.sqlite.declaring import remove, rewind
from carteiro.backends.sqlite.publishing import lane_of, unblock
from carteiro.backends.sqlite.routes import STALE, Routes
from carteiro.backends.sqlite.session import Session, micros
from carteiro.backends.sqlite.statements import SQL
from carteiro.message import DeadLetter, Failure, Message, Subscription
from carteiro.ports.broker import GroupStatus
from carteiro.ports.records import repack, unpack

_decode_history = msgspec.json.Decoder(tuple[Failure, ...]).decode


class SqliteInspector:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def groups(self) -> Sequence[GroupStatus]:
        now = self._now()
        rows = await self._database.inspect(
            lambda connection: connection.execute(SQL["groups"], {"now": now}).fetchall()
        )
        return [_status(now, *row) for row in rows]

    async def peek(self, topic: str, group: str, limit: int = 10) -> Sequence[Message]:
        """Each as its next attempt will see it. Raises BrokerError for an unknown group."""
        now = self._now()

        def look(connection: Any) -> list[tuple[Any, ...]]:
            routes = Routes()
            routes.load(connection, STALE)
            route = routes.get(Subscription(topic, group))
            rows: list[tuple[Any, ...]] = connection.execute(SQL["peek"], (route.id, now, limit)).fetchall()
            return rows

        return [unpack(record, attempt) for record, attempt in await self._database.inspect(look)]

    async def dead_letters(
        self, queue: str | None = None, *, ids: Sequence[str] | None = None, limit: int | None = None
    ) -> Sequence[DeadLetter]:
        parameters = {"queue": queue, "ids": _rows(ids), "limit": -1 if limit is None else limit}
        return await self._database.inspect(  # they are unpacked there too: 30,000 take 0.2 s
            lambda connection: [_dead_letter(*row) for row in connection.execute(SQL["dead_letters"], parameters)]
        )

    async def replay(self, queue: str, *, ids: Sequence[str] | None = None, body: bytes | None = None) -> int:
        """Raises BrokerError, and replays none, where a group that failed is no longer there."""
        return await self._database.write(lambda session: _replay(session, queue, _rows(ids), body))

    async def purge_dead(
        self, queue: str, *, ids: Sequence[str] | None = None, older_than: timedelta | None = None
    ) -> int:
        age = micros((older_than or timedelta(0)).total_seconds())
        return await self._database.write(
            lambda session: (
                session.run("purge_dead", {"queue": queue, "until": session.now - age, "ids": _rows(ids)}).rowcount
            )
        )

    async def purge(self, topic: str, group: str) -> int:
        """Raises BrokerError for an unknown group."""

        def drop(session: Session) -> int:
            route = session.routes.get(Subscription(topic, group))
            return session.run("purge", (route.id, session.now)).rowcount

        return await self._database.write(drop)

    async def remove_group(self, topic: str, group: str) -> None:
        await self._database.write(lambda session: remove(session, topic, group))

    async def rewind(self, topic: str, group: str, to: float) -> int:
        return await self._database.write(lambda session: rewind(session, Subscription(topic, group), to))

    def _now(self) -> int:
        return micros(self._database.clock.time())


def _status(now: int, *row: Any) -> GroupStatus:
    topic, group, waiting, delayed, retrying, in_flight, dead, oldest, consumers = row
    age = None if oldest is None else (now - oldest) / 1_000_000
    return GroupStatus(topic, group, waiting, delayed, retrying, in_flight, dead, age, consumers)


def _replay(session: Session, queue: str, ids: str | None, body: bytes | None) -> int:
    letters = session.run("dead_subscriptions", {"queue": queue, "ids": ids}).fetchall()
    routes = [session.routes.get(Subscription(topic, group)) for _, topic, group in letters]
    for (id, _, _), route in zip(letters, routes, strict=True):
        (record,) = session.run("dead_record", (id,)).fetchone()
        message = unpack(record)
        lane = lane_of(message.key) if route.ordered else None
        delivery = {
            "subscription": route.id,
            "now": session.now,
            "published": micros(message.published),
            "lane": lane,
            "record": record if body is None else repack(message, body),
        }
        session.run("replay", delivery)
        session.run("remove_dead_letter", (id,))
        if lane is not None:
            unblock(session, [(route.id, lane)])
    return len(letters)


def _rows(ids: Sequence[str] | None) -> str | None:
    """The ids as the JSON list that the statements take; what is no number is nobody's id."""
    return None if ids is None else msgspec.json.encode([int(id) for id in ids if id.isdecimal()]).decode()


def _dead_letter(
    row: int,
    queue: str,
    topic: str,
    group: str,
    record: bytes,
    attempt: int,
    reason: str,
    died_at: int,
    history: str | None,
) -> DeadLetter:
    failures = () if history is None else _decode_history(history)
    return DeadLetter(str(row), queue, topic, group, unpack(record, attempt), reason, died_at / 1_000_000, failures)
