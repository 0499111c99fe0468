"""What the thread does unasked: say that this process lives, and clear away what has passed.

A consumer, and an ephemeral subscription, lives as long as its process says so: every 10 seconds, for the next 30. A
process that was frozen for longer says so first thing when it goes on, and what was taken from it is declared anew.
Only the rows that have passed are cleared, a few thousand at a time, and freed pages go back to the system in small
parts, so that the file holds what is there and not what once was.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

from carteiro.backends.sqlite.mishaps import is_busy
from carteiro.backends.sqlite.session import Session, micros
from carteiro.message import Subscription

LIFETIME: Final = micros(30)
_BEAT: Final = micros(10)
_SOON: Final = micros(0.25)
_SPARE_PAGES: Final = 1_000  # left free in the file: 4 MB for the next messages
_VACUUM_PAGES: Final = 500  # given back at once: some milliseconds every `_SOON`, about 2% of a busy thread
_LIMIT: Final = 5_000  # rows of the statements `expire_…`


class Keeper:
    """Told by the loops what to keep, asked by the thread to do it."""

    def __init__(self) -> None:
        self._ephemeral: dict[Subscription, None] = {}
        self._consumers: dict[str, Sequence[Subscription]] = {}
        self._next = 0
        self._shrunk = 0  # the value of `_next` at the last `shrink`

    def keep(self, subscription: Subscription) -> None:
        """Renew an ephemeral subscription until it is dropped."""
        self._ephemeral[subscription] = None

    def drop(self, subscription: Subscription) -> None:
        self._ephemeral.pop(subscription, None)

    def join(self, consumer: str, subscriptions: Sequence[Subscription]) -> None:
        self._consumers[consumer] = subscriptions
        self.again()

    def leave(self, consumer: str) -> None:
        self._consumers.pop(consumer, None)

    def pause(self, session: Session) -> float:
        """Seconds until the next round, as far as a clock that can be held is to be trusted: a second at most."""
        return min(max(self._next / 1_000_000 - session.clock.time(), 0.0), 1.0)

    def is_due(self, session: Session) -> bool:
        return session.clock.time() * 1_000_000 >= self._next

    def postpone(self, session: Session) -> None:
        """After a round that failed: the next in a second, so that a full disk is no busy loop."""
        self._next = micros(session.clock.time()) + _BEAT // 10

    def again(self) -> None:
        """The transaction of a round is undone: the next one is due at once."""
        self._next = 0

    def tend(self, session: Session) -> None:
        """Within a transaction: whatever is due of all this."""
        if session.now >= self._next:
            self._next = session.now + _BEAT
            self._beat(session)
            if self._clear(session):
                self._next = session.now + _SOON
        elif session.now >= session.routes.earliest_expiry:
            # What the cache holds as expired its own process may have renewed since.
            session.routes.load(session.connection, session.routes.version)
            if session.now >= session.routes.earliest_expiry:
                remove_expired(session)

    def shrink(self, session: Session) -> None:
        """After a commit: give free pages back, once a round and some at a time."""
        if self._next == self._shrunk:
            return
        self._shrunk = self._next
        (free,) = session.connection.execute("PRAGMA freelist_count").fetchone()
        if free <= _SPARE_PAGES:
            return
        try:
            # As a script, for it is a step a page, and `execute` takes only one of a statement without columns.
            session.connection.executescript(f"PRAGMA incremental_vacuum({min(free - _SPARE_PAGES, _VACUUM_PAGES)})")
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
        self._next = self._shrunk = session.now + _SOON

    def _beat(self, session: Session) -> None:
        until = session.now + LIFETIME
        for subscription in list(self._ephemeral):
            place = (until, subscription.topic, subscription.group)
            if session.run("renew_subscription", place).rowcount == 0:
                session.run("add_subscription", (subscription.topic, subscription.group, subscription.ordered, until))
                session.routes_changed()
        for consumer, subscriptions in list(self._consumers.items()):
            for subscription in subscriptions:
                session.run("renew_consumer", (consumer, subscription.topic, subscription.group, until))

    def _clear(self, session: Session) -> bool:
        """True if there may be more."""
        if not session.run("expired", {"now": session.now}).fetchone()[0]:
            return False
        remove_expired(session)
        session.run("expire_consumers", (session.now,))
        tables = ("expire_marks", "expire_store", "expire_members", "expire_joins", "expire_log")
        cleared = [session.run(table, (session.now,)).rowcount for table in tables]
        return max(cleared) >= _LIMIT


def remove_expired(session: Session) -> None:
    """Remove the ephemeral subscriptions whose process is gone, with what waited for them."""
    ids = [id for (id,) in session.run("expired_subscriptions", (session.now,)).fetchall()]
    for id in ids:
        session.run("remove_deliveries", (id,))
        session.run("remove_subscription", (id,))
    if ids:
        session.routes_changed()
