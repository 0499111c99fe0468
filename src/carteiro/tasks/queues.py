"""Where tasks wait: the topics of a task queue, and what is found out while running.

A queue is three subscriptions, one for each priority, so that what is urgent passes by what waits. A queue that some
task of the app names is known from the code. One that only a call names (`queue="slow"`) is *found*: who sends the
first task to it declares it and writes it down in the store, and every worker of the app, which waits to be told of
that, takes it up. The topics of events that tasks wait for are found likewise.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final

import msgspec

from carteiro.errors import ConfigurationError
from carteiro.message import Subscription, Write
from carteiro.ports.store import Store
from carteiro.tasks.canvas import Priority
from carteiro.tasks.records import found_key
from carteiro.topics import check_topic

PREFIX: Final = "tasks"
LEVELS: Final[tuple[Priority, ...]] = ("high", "normal", "low")


def topic_of(app: str, queue: str, priority: Priority = "normal") -> str:
    """Raises ConfigurationError for what is no name of a queue."""
    if not queue or "." in queue or "*" in queue or "#" in queue or any(letter.isspace() for letter in queue):
        raise ConfigurationError(f"queue={queue!r}: the name of a task queue is one word, without dots")
    if priority not in LEVELS:
        raise ConfigurationError(f"priority={priority!r}: it is high, normal or low")
    return check_topic(f"{PREFIX}.{app}.{queue}" + ("" if priority == "normal" else f".{priority}"))


def queue_of(app: str, topic: str) -> tuple[str, int] | None:
    """The queue and the index of its level behind a topic, if it is one of the app's queues."""
    before = f"{PREFIX}.{app}."
    if not topic.startswith(before):
        return None
    queue, _, level = topic.removeprefix(before).partition(".")
    return queue, LEVELS.index(level or "normal")


def subscriptions_of(app: str, queue: str, lease: float) -> list[Subscription]:
    return [Subscription(topic_of(app, queue, level), app, lease=lease) for level in LEVELS]


def topics_of(app: str, queues: Collection[str], names: Sequence[str]) -> list[str]:
    """`names`, the topics of those among them that are task queues and, if any is, the group that hears of events."""
    levels = [topic_of(app, name, level) for name in names if name in queues for level in LEVELS]
    return [*names, *levels, *([waits_group(app)] if levels else [])]


def waits_group(app: str) -> str:
    """The group as which the app hears of events that its tasks wait for."""
    return f"{app}.waits"


class Found(msgspec.Struct, frozen=True):
    """What an app's code does not name, and its workers take up all the same."""

    queues: tuple[str, ...] = ()
    events: tuple[str, ...] = ()

    def besides(self, queues: Iterable[str], events: Iterable[str]) -> Found:
        """Those that are not among these."""
        known, heard = set(queues), set(events)
        return Found(
            tuple(queue for queue in self.queues if queue not in known),
            tuple(event for event in self.events if event not in heard),
        )


found_of = msgspec.msgpack.Decoder(Found).decode
_pack = msgspec.msgpack.Encoder().encode


async def write_down(store: Store, app: str, *, queue: str | None = None, event: str | None = None) -> None:
    """Have all workers of the app take this up, now and in days to come."""
    key = found_key(app)
    while True:
        entry = (await store.get((key,))).get(key)
        found = Found() if entry is None else found_of(entry.value)
        queues = found.queues if queue is None or queue in found.queues else (*found.queues, queue)
        events = found.events if event is None or event in found.events else (*found.events, event)
        if (queues, events) == (found.queues, found.events):
            return
        write = Write(key, _pack(Found(queues, events)), expect=0 if entry is None else entry.version)
        if (await store.write([write]))[0]:
            return
