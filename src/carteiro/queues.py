"""An app that follows a file of queues: what the file says, where the code leaves it open."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from carteiro.config.problems import nearest
from carteiro.config.queues import Queue, Queues
from carteiro.errors import ConfigurationError
from carteiro.router import Subscriber
from carteiro.topics import is_pattern, matches


def filled(subscribers: Sequence[Subscriber], queues: Queues) -> list[Subscriber]:
    """The subscribers as they run by the file: what a decorator says holds, and the file says the rest.

    Raises ConfigurationError that names each of those that have no queue there.
    """
    strangers = [one for one in subscribers if one.source is None and not _queues_of(one, queues)]
    if strangers:
        raise ConfigurationError("\n".join(_unknown(one, queues) for one in strangers))
    return [_filled(one, queues) for one in subscribers]


def closed(queues: Queues) -> dict[str, str]:
    """The topics that this service may not publish to, and what to say of each."""
    return {
        queue.name: f"`{queue.name}` takes nothing from this service: enable_publisher is false at {queue.place}"
        for queue in queues.queues.values()
        if not queue.publishes
    }


def not_consumed(queues: Queues) -> str | None:
    """What to say of the queues that this service leaves to others, if there are any."""
    left = [f"{queue.name} ({queue.place})" for queue in queues.queues.values() if not queue.consumes]
    return f"not consumed here, since enable_consumer is false: {', '.join(left)}" if left else None


def _filled(subscriber: Subscriber, queues: Queues) -> Subscriber:
    if subscriber.source is not None:
        return subscriber
    found = _queues_of(subscriber, queues)
    if is_pattern(subscriber.topic):
        broker = _broker_of_all(subscriber, found)
        return msgspec.structs.replace(subscriber, broker=broker, consumes=_consumes_all(subscriber, broker, found))
    (queue,) = found
    if queue.name != subscriber.topic:  # its dead letters, which are where it is
        return msgspec.structs.replace(subscriber, broker=subscriber.broker or queue.broker)
    open_ = {name: value for name, value in queue.policies.items() if getattr(subscriber, name) is None}
    if subscriber.dead_letters is False:
        open_.pop("reprocess", None)
    return msgspec.structs.replace(subscriber, consumes=queue.consumes, **open_)


def _queues_of(subscriber: Subscriber, queues: Queues) -> list[Queue]:
    """Its queue; for a pattern those that it matches."""
    if is_pattern(subscriber.topic):
        return [queue for queue in queues.queues.values() if matches(subscriber.topic, queue.name)]
    queue = queues.of(subscriber.topic)
    return [] if queue is None else [queue]


def _broker_of_all(subscriber: Subscriber, found: Sequence[Queue]) -> str:
    if subscriber.broker is not None:
        return subscriber.broker
    brokers = {queue.broker: queue for queue in found}
    if len(brokers) > 1:
        places = " and ".join(f"`{queue.name}` ({queue.place})" for queue in brokers.values())
        raise ConfigurationError(
            f"{subscriber} is for queues on several brokers, {places}: subscribe to each, or say which with broker="
        )
    return found[0].broker


def _consumes_all(subscriber: Subscriber, broker: str, found: Sequence[Queue]) -> bool:
    """Whether this service handles what the pattern gets on its broker: all of it, or nothing."""
    either = {queue.consumes: queue for queue in found if queue.broker == broker}
    if len(either) > 1:
        raise ConfigurationError(
            f"{subscriber} is for `{either[True].name}` ({either[True].place}) and for `{either[False].name}` "
            f"({either[False].place}), where enable_consumer is false: subscribe to each queue that is consumed here"
        )
    return False not in either


def _unknown(subscriber: Subscriber, queues: Queues) -> str:
    way_out = nearest(subscriber.topic, queues.queues) or f": add `- name: {subscriber.topic}` there"
    return f"{subscriber} has no queue in {queues.file}{way_out}"
