"""Who gets what: the subscriptions and retentions of the file, as this process last read them."""

from __future__ import annotations

import math
import sqlite3
from typing import Final

import msgspec

from carteiro.backends.sqlite.statements import SQL
from carteiro.errors import BrokerError
from carteiro.message import Subscription
from carteiro.topics import matches

_REMEMBERED: Final = 10_000  # topics; more than that would be names made up as they go
STALE: Final = -1


class Route(msgspec.Struct, frozen=True):
    """A declared subscription. `expires_at`, in microseconds, is that of an ephemeral one."""

    id: int
    topic: str
    group: str
    ordered: bool
    expires_at: int | None


class Targets(msgspec.Struct, frozen=True):
    """Where a topic's messages go. `duration`, in microseconds, is how long the topic's log keeps them."""

    concurrent: tuple[int, ...]
    ordered: tuple[int, ...]
    groups: int
    """How many durable groups get them."""
    duration: int | None

    @property
    def nobody(self) -> bool:
        return not self.concurrent and not self.ordered and self.duration is None


class Routes:
    """A cache of one version. `version` is that of the file when it was read, or STALE."""

    def __init__(self) -> None:
        self.version = STALE
        self.earliest_expiry: float = math.inf
        self._routes: dict[tuple[str, str], Route] = {}
        self._retentions: dict[str, int] = {}
        self._targets: dict[str, Targets] = {}

    def load(self, connection: sqlite3.Connection, version: int) -> None:
        rows = connection.execute(SQL["subscriptions"]).fetchall()
        self._routes = {
            (topic, group): Route(id, topic, group, bool(ordered), expires_at)
            for id, topic, group, ordered, expires_at in rows
        }
        self._retentions = dict(connection.execute(SQL["retentions"]).fetchall())
        self._targets = {}
        self.earliest_expiry = min(
            (route.expires_at for route in self._routes.values() if route.expires_at is not None), default=math.inf
        )
        self.version = version

    def find(self, topic: str, group: str) -> Route | None:
        return self._routes.get((topic, group))

    def get(self, subscription: Subscription) -> Route:
        """Raises BrokerError for what was never declared, or was removed."""
        route = self._routes.get((subscription.topic, subscription.group))
        if route is None:
            raise BrokerError(f"no group `{subscription.group}` on `{subscription.topic}`: declare it first")
        return route

    def targets(self, topic: str, *, besides: str | None = None) -> Targets:
        """Who gets `topic`; with `besides`, only those who would not get that topic."""
        name = topic if besides is None else f"{topic} {besides}"  # no topic has a space
        found = self._targets.get(name)
        if found is None:
            if len(self._targets) >= _REMEMBERED:
                self._targets.clear()
            found = self._targets[name] = self._match(topic, besides)
        return found

    def retained(self, pattern: str) -> list[str]:
        """The retained topics that `pattern` matches."""
        return [topic for topic in self._retentions if matches(pattern, topic)]

    def duration(self, topic: str) -> int | None:
        return self._retentions.get(topic)

    def _match(self, topic: str, besides: str | None) -> Targets:
        routes = [
            route
            for route in self._routes.values()
            if matches(route.topic, topic) and not (besides is not None and matches(route.topic, besides))
        ]
        return Targets(
            tuple(route.id for route in routes if not route.ordered),
            tuple(route.id for route in routes if route.ordered),
            len({route.group for route in routes if route.expires_at is None}),
            self._retentions.get(topic),
        )
