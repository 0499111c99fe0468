"""The store's entries within a transaction. A key that was deleted or has expired starts again at version 1."""

from __future__ import annotations

from collections.abc import Sequence

from carteiro.backends.sqlite.session import Session, micros
from carteiro.message import Write


def write(session: Session, change: Write) -> bool:
    """Apply one write; False, and nothing done, where the version is not the one expected."""
    row = session.run("store_version", (change.key, session.now)).fetchone()
    version = 0 if row is None else row[0]
    if change.expect is not None and change.expect != version:
        return False
    if change.value is None:
        session.run("store_delete", (change.key,))
        return True
    expires_at = None if change.ttl is None else session.now + micros(change.ttl)
    entry = {"key": change.key, "value": change.value, "version": version + 1, "expires_at": expires_at}
    session.run("store_put", entry)
    return True


def write_all(session: Session, changes: Sequence[Write]) -> bool:
    """Apply all in order or, where one does not find the version it expects, none."""
    if len(changes) < 2:
        return all(write(session, change) for change in changes)
    session.connection.execute("SAVEPOINT writes")
    done = all(write(session, change) for change in changes)
    if not done:
        session.connection.execute("ROLLBACK TO writes")
    session.connection.execute("RELEASE writes")
    return done
