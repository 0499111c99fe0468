"""What a handler gets besides its body: a logger that knows the message, and emitters."""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from datetime import timedelta
from typing import Any, Generic, TypeVar

import msgspec

from carteiro.message import NO_HEADERS, Message, Native

T = TypeVar("T")


class Logger(logging.LoggerAdapter[logging.Logger]):
    """The handler's logger. Each record carries `topic` and, for a single message, `message_id` and `correlation_id`.

    They are put together only when a line is logged: one comes with each message, and most log nothing.
    """

    def __init__(self, logger: logging.Logger, topic: str, message: Message | None = None) -> None:
        self.logger = logger
        self._topic = topic
        self._message = message

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        message = self._message
        fields: dict[str, Any] = {"topic": self._topic}
        if message is not None:
            fields = {"topic": message.topic, "message_id": message.id, "correlation_id": message.correlation_id}
        kwargs["extra"] = {**fields, **(kwargs.get("extra") or {})}
        return msg, kwargs


class Emitted(msgspec.Struct, frozen=True):
    """One emission, to be published when the handler's delivery is acked. `delay` is in seconds."""

    topic: str
    value: Any
    key: str | None
    headers: Mapping[str, str]
    delay: float
    target: Native | None = None
    """What was given in place of a topic's name."""
    broker: str | None = None


class Emit(Generic[T]):
    """Call it with a value to publish to its topic, only if the handler succeeds: atomically with the ack, or, to
    another broker than the message came from, before it.

    In a unit test make one by hand, `Emit("stock.released")`, and look at its `emitted`.
    """

    __slots__ = ("_broker", "_target", "emitted", "topic")

    def __init__(self, topic: str | Native, emitted: list[Emitted] | None = None, *, broker: str | None = None) -> None:
        self.topic = topic if isinstance(topic, str) else topic.topic
        self._target = None if isinstance(topic, str) else topic
        self._broker = broker
        self.emitted = [] if emitted is None else emitted

    def __call__(
        self,
        value: T,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        delay: float | timedelta | None = None,
    ) -> None:
        """`delay` is in seconds from the broker's now when it is a number."""
        seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay or 0.0
        written = NO_HEADERS if headers is None else headers
        self.emitted.append(Emitted(self.topic, value, key, written, seconds, self._target, self._broker))
