"""What a file of queues comes to: the brokers, and what each queue says to those who subscribe and publish to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from carteiro.ports.urls import hidden
from carteiro.topics import DLQ_PREFIX


class Queue(msgspec.Struct, frozen=True, eq=False):
    """One queue. `broker` is its name in `Queues.brokers`, `place` is as `queues.yaml:3`."""

    name: str
    type: str
    place: str
    broker: str
    consumes: bool
    publishes: bool
    policies: Mapping[str, Any]
    """What a subscriber is given where its decorator leaves that open, by the names of its options."""


class Queues(msgspec.Struct, frozen=True, eq=False):
    """A whole file. The URLs hold secrets, so they are not part of what is shown of it."""

    file: str
    app: str | None
    store: str | None
    brokers: Mapping[str, str]
    """URLs by name. The first one is the app's default."""
    queues: Mapping[str, Queue]

    def __repr__(self) -> str:
        return f"Queues({self.file}: {', '.join(self.queues)})"

    def address(self, broker: str) -> str:
        """The broker's URL as it may be shown: without password and options."""
        return hidden(self.brokers[broker])

    def of(self, topic: str) -> Queue | None:
        """The queue of this name, or the one whose dead letters go by it."""
        queue = self.queues.get(topic)
        if queue is None and topic.startswith(DLQ_PREFIX):
            failed = topic.removeprefix(DLQ_PREFIX)
            queue = self.queues.get(failed) or self.queues.get(failed.rpartition(".")[0])
        return queue


def named_brokers(urls: Iterable[tuple[str, str]]) -> dict[str, str]:
    """From (type, URL) of each queue to the brokers by name: `default` for the first, then `redis`, `redis-2`…"""
    names: dict[str, str] = {}
    for type, url in urls:
        if url in names:
            continue
        taken = set(names.values())
        candidates = (type if number == 1 else f"{type}-{number}" for number in range(1, len(taken) + 2))
        names[url] = "default" if not taken else next(one for one in candidates if one not in taken)
    return {name: url for url, name in names.items()}
