"""The store's sets within a transaction: five statements for a whole batch of joins, however many sets they are of.

A set has a row for each of its members, so that an add costs the same in a set of three and in one of 10,000. Once it
is full they are deleted: who completed it is all that decides what a later add does. What one batch fills has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from carteiro.backends.sqlite import entries
from carteiro.backends.sqlite.entries import name_of
from carteiro.backends.sqlite.session import Session, micros
from carteiro.message import Join, Write

_Row = tuple[str, int, int, tuple[str, str] | None, int]
"""Key, id, size, who completed it, and whether it has expired (0, 1)."""

_encode = msgspec.json.Encoder().encode
_decode_sets = msgspec.json.Decoder(list[_Row]).decode
_decode_numbers = msgspec.json.Decoder(list[int]).decode


class _Set:
    """One set, as this transaction found it and as it leaves it. `stored` is how many members have a row."""

    __slots__ = ("added", "completed", "expires_at", "id", "stored")

    def __init__(self, id: int, stored: int, completed: tuple[str, str] | None) -> None:
        self.id = id
        self.stored = stored
        self.completed = completed
        self.added: set[str] = set()
        self.expires_at: int | None = None

    def add(self, join: Join, now: int) -> bool:
        """True where that completes it."""
        self.added.add(name_of(join.member))
        self.expires_at = None if join.ttl is None else now + micros(join.ttl)
        if self.stored + len(self.added) < join.size:
            return False
        self.completed = join.member, join.actor
        return True


def make(session: Session, joins: Sequence[Join]) -> list[bool]:
    """Make them in order, their writes too; True for each whose emits are to be published."""
    sets = _read(session, joins)
    there = _members_there(session, joins, sets)
    told: list[bool] = []
    writes: list[Write] = []
    for number, join in enumerate(joins):
        joined = sets[name_of(join.key)]
        if joined.completed is not None:
            told.append(joined.completed == (join.member, join.actor))
        elif number in there or name_of(join.member) in joined.added:
            told.append(False)
        else:
            told.append(joined.add(join, session.now))
            if told[-1]:
                writes += join.writes
    _keep(session, sets)
    if writes:
        entries.write(session, [writes])
    return told


def _read(session: Session, joins: Iterable[Join]) -> dict[str, _Set]:
    """The sets by name: those that are there, and new ones for those that are not."""
    keys = dict.fromkeys(name_of(join.key) for join in joins)
    last, rows = session.run("joins", {"keys": _json([*keys]), "now": session.now}).fetchone()
    sets: dict[str, _Set] = {}
    expired: list[int] = []
    for key, id, size, completed, has_expired in _decode_sets(rows):
        if has_expired:
            expired.append(id)
            sets[key] = _Set(id, 0, None)
        else:
            sets[key] = _Set(id, size, completed)
    if expired:
        session.run("remove_members", (_json(expired),))
    for id, key in enumerate((key for key in keys if key not in sets), last + 1):
        sets[key] = _Set(id, 0, None)
    return sets


def _members_there(session: Session, joins: Sequence[Join], sets: dict[str, _Set]) -> set[int]:
    """Which of `joins`, by number, are of a member that has a row."""
    if not any(joined.stored and joined.completed is None for joined in sets.values()):
        return set()
    wanted = [(sets[name_of(join.key)].id, name_of(join.member)) for join in joins]
    return set(_decode_numbers(session.run("members_there", (_json(wanted),)).fetchone()[0]))


def _keep(session: Session, sets: dict[str, _Set]) -> None:
    changed = {key: joined for key, joined in sets.items() if joined.added}
    if not changed:
        return
    rows = [(one.id, key, one.stored + len(one.added), one.completed, one.expires_at) for key, one in changed.items()]
    session.run("put_joins", (_json(rows),))
    members = [(one.id, member) for one in changed.values() if one.completed is None for member in one.added]
    if members:
        session.run("add_members", (_json(members),))
    full = [one.id for one in changed.values() if one.completed is not None and one.stored]
    if full:
        session.run("remove_members", (_json(full),))


def _json(value: Any) -> str:
    return _encode(value).decode()
