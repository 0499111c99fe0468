"""Who gets what: the queues and logs of the server, as this process last read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec

from carteiro.backends.redis.natives import RedisChannel, RedisList, RedisStream
from carteiro.errors import BrokerError, UnsupportedFeature
from carteiro.message import Native, Outgoing, Subscription
from carteiro.topics import matches

_REMEMBERED: Final = 10_000  # topics; more than that would be names made up as they go

_Route = tuple[str, str, bool, bool]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Route).decode


class Targets(msgspec.Struct, frozen=True):
    """Where a topic's messages go: `route` as the scripts take it (queues, ordered queues, log or False).

    Of what goes to someone else's place, the place is a fourth part.
    """

    route: tuple[Any, ...]
    groups: int
    """How many durable groups get them."""

    @property
    def nobody(self) -> bool:
        return not any(self.route)


class Routes:
    """One version of it. `epoch` is another one when the server has lost everything."""

    def __init__(
        self, base: str, epoch: bytes | None, version: bytes | None, routes: Sequence[bytes], logs: Sequence[bytes]
    ) -> None:
        self.epoch = epoch
        self.version: str | bool = False if version is None else version.decode()
        self._base = base
        self._queues: dict[str, _Route] = {
            queue.decode(): _decode(route) for queue, route in zip(routes[::2], routes[1::2], strict=True)
        }
        self._logs = {topic.decode(): int(kept) for topic, kept in zip(logs[::2], logs[1::2], strict=True)}
        self._targets: dict[tuple[str, str | None], Targets] = {}

    def __contains__(self, subscription: Subscription) -> bool:
        return queue_of(self._base, subscription) in self._queues

    def is_ordered(self, subscription: Subscription) -> bool:
        """Raises BrokerError for what was never declared, or was removed."""
        route = self._queues.get(queue_of(self._base, subscription))
        if route is None:
            raise unknown(subscription)
        return route[2]

    def targets(self, topic: str, *, besides: str | None = None) -> Targets:
        """Who gets `topic`; with `besides`, only those who would not get that topic."""
        found = self._targets.get((topic, besides))
        if found is None:
            if len(self._targets) >= _REMEMBERED:
                self._targets.clear()
            found = self._targets[topic, besides] = self._match(topic, besides)
        return found

    def of(self, message: Outgoing) -> Targets:
        """Who gets a message."""
        return self.targets(message.topic) if message.target is None else _place(message.target)

    def logs(self, pattern: str, more: Mapping[str, int] | None = None) -> list[str | int]:
        """Key and retention (microseconds) of the log of each topic that `pattern` matches, `more` among them."""
        found: list[str | int] = []
        for topic, kept in (self._logs | dict(more or {})).items():
            if matches(pattern, topic):
                found += (log_of(self._base, topic), kept)
        return found

    def _match(self, topic: str, besides: str | None) -> Targets:
        got = {
            queue: route
            for queue, route in self._queues.items()
            if matches(route[0], topic) and not (besides is not None and matches(route[0], besides))
        }
        return Targets(
            (
                tuple(queue for queue, route in got.items() if not route[2]),
                tuple(queue for queue, route in got.items() if route[2]),
                log_of(self._base, topic) if topic in self._logs else False,
            ),
            len({route[1] for route in got.values() if not route[3]}),
        )


@lru_cache(maxsize=_REMEMBERED)
def _place(native: Native) -> Targets:
    """Raises UnsupportedFeature for what is not Redis' own."""
    if isinstance(native, RedisChannel):
        return Targets(((), (), False, ("channel", native.name, False)), 0)
    if isinstance(native, RedisList):
        return Targets(((), (), False, ("list", native.name, False)), 0)
    if isinstance(native, RedisStream):
        return Targets(((), (), False, ("stream", native.name, native.maxlen or False)), 0)
    raise UnsupportedFeature(f"{native!r} is no object of Redis")


def queue_of(base: str, subscription: Subscription) -> str:
    """The name of its queue. A topic has no space, so no two subscriptions have the same."""
    return f"{base}:{subscription}"


def log_of(base: str, topic: str) -> str:
    return f"{base}:log:{topic}"


def pack_route(subscription: Subscription) -> bytes:
    return _encode((subscription.topic, subscription.group, subscription.ordered, subscription.ephemeral))


def unpack_route(route: bytes) -> tuple[str, str, bool, bool]:
    found: _Route = _decode(route)
    return found


def unknown(subscription: Subscription) -> BrokerError:
    return BrokerError(f"no group `{subscription.group}` on `{subscription.topic}`: declare it first")
