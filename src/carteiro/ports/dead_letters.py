"""What every backend does alike when a group gives up on a message."""

from __future__ import annotations

from carteiro.message import (
    DEAD_ATTEMPTS,
    DEAD_GROUP,
    DEAD_REASON,
    DEAD_TOPIC,
    Failure,
    Message,
    Outcome,
    Outgoing,
    new_id,
)
from carteiro.topics import dlq_name


def dead_queue(topic: str, group: str, groups: int) -> tuple[str, str]:
    """The dead letter queue, and its other name, where so many durable groups get the topic.

    Who listens to the other name is told too, under that name: a second group changes which one the queue has.
    """
    short, long = dlq_name(topic), dlq_name(topic, group)
    return (long, short) if groups > 1 else (short, long)


def dead_notice(message: Message, group: str, reason: str, queue: str) -> Outgoing:
    """What tells those who subscribe to `queue`. `message` is as its last attempt saw it."""
    headers = {
        **message.headers,
        DEAD_REASON: reason,
        DEAD_TOPIC: message.topic,
        DEAD_GROUP: group,
        DEAD_ATTEMPTS: str(message.attempt),
    }
    return Outgoing(new_id(), queue, message.body, message.key, headers, message.correlation_id)


def whole_history(outcome: Outcome) -> tuple[Failure, ...]:
    """The failures of the delivery, with the one it ends with; as any backend can keep them."""
    history, failure = outcome.delivery.history, outcome.failure
    if failure is None or failure in history[-1:]:
        return history
    return (*history, Failure(failure.attempt, failure.at, storable(failure.error), storable(failure.traceback)))


def reason_of(outcome: Outcome) -> str:
    """Why it is dead, as any backend can keep it."""
    return "" if outcome.failure is None else storable(outcome.failure.error)


def storable(text: str) -> str:
    """An exception's text may hold lone surrogates, as of a file's name; UTF-8 may not, and SQLite's JSON no NUL."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
