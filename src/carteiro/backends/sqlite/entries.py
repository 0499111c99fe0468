"""The store's entries within a transaction. A key that was deleted or has expired starts again at version 1.

However many are written, it takes one statement for the versions and one for the values. Write by write, 21,000 acks a
second could each leave a record, in batches of 500; so it is 49,000.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec

from carteiro.backends.sqlite.publishing import spans_of
from carteiro.backends.sqlite.session import Session, micros
from carteiro.message import Write
from carteiro.ports.store import Entry

_AT_ONCE: Final = 16 * 1024 * 1024
"""Bytes of values after which a batch is cut: SQLite takes no value of 1 GB."""

_encode = msgspec.json.Encoder().encode
_decode_versions = msgspec.json.Decoder(list[tuple[str, int]]).decode


def name_of(key: str) -> str:
    """The key as the file has it. SQLite's JSON ends a text at its first NUL, so a name has none."""
    return key.replace("\0", "\N{REPLACEMENT CHARACTER}")


def read(session: Session, keys: Collection[str]) -> dict[str, Entry]:
    """Those of `keys` that are there."""
    rows = session.run("store_get", (_names(keys), session.now)).fetchall()
    found = {name: Entry(value, version) for name, value, version in rows}
    return {key: found[name] for key in keys if (name := name_of(key)) in found}


def versions(session: Session, keys: Collection[str]) -> dict[str, int]:
    """Of those of `keys` that are there."""
    (rows,) = session.run("store_versions", (_names(keys), session.now)).fetchone()
    found = dict(_decode_versions(rows))
    return {key: found[name] for key in keys if (name := name_of(key)) in found}


def write(session: Session, groups: Sequence[Sequence[Write]]) -> list[bool]:
    """Apply each group whole or, where one of its writes does not find the version that it expects, not at all."""
    known = versions(session, {change.key for group in groups for change in group})
    last: dict[str, Write] = {}
    told: list[bool] = []
    for group in groups:
        changed = _checked(group, known)
        told.append(changed is not None)
        if changed is not None:
            known.update(changed)
            last.update((change.key, change) for change in group)
    session.touched.update(last)
    _delete(session, [key for key, change in last.items() if change.value is None])
    _put(session, [change for change in last.values() if change.value is not None], known)
    return told


def _checked(group: Sequence[Write], known: Mapping[str, int]) -> dict[str, int] | None:
    """The versions that a group leaves, 0 for what it deletes; None where it does not hold."""
    changed: dict[str, int] = {}
    for change in group:
        version = changed.get(change.key, known.get(change.key, 0))
        if change.expect is not None and change.expect != version:
            return None
        changed[change.key] = 0 if change.value is None else version + 1
    return changed


def _delete(session: Session, keys: Sequence[str]) -> None:
    if keys:
        session.run("store_delete", (_names(keys),))


def _put(session: Session, changes: Sequence[Write], known: Mapping[str, int]) -> None:
    start = size = 0
    for end, change in enumerate(changes, 1):
        size += len(change.value or b"")
        if size > _AT_ONCE or end == len(changes):
            _put_part(session, changes[start:end], known)
            start, size = end, 0


def _put_part(session: Session, changes: Sequence[Write], known: Mapping[str, int]) -> None:
    values = [change.value or b"" for change in changes]
    rows = [
        (
            span,
            name_of(change.key),
            known[change.key],
            None if change.ttl is None else session.now + micros(change.ttl),
        )
        for span, change in zip(spans_of(values), changes, strict=True)
    ]
    session.run("store_put", {"rows": _json(rows), "values": b"".join(values)})


def _names(keys: Collection[str]) -> str:
    return _json([name_of(key) for key in keys])


def _json(value: Any) -> str:
    return _encode(value).decode()
