"""The app, as what is done with its tasks from outside of a worker needs it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from carteiro.message import Outgoing
from carteiro.ports.broker import Broker
from carteiro.ports.clock import Clock
from carteiro.ports.store import Store

T = TypeVar("T")


class Link(Protocol):
    """The connection by which tasks go: to a broker, and to the store for what is consumed from it."""

    @property
    def broker(self) -> Broker: ...

    @property
    def store(self) -> Store | None: ...

    async def publish(self, messages: Sequence[Outgoing]) -> None: ...


class Office(Protocol):
    """The app, as far as its tasks need it."""

    @property
    def name(self) -> str: ...

    @property
    def clock(self) -> Clock: ...

    @property
    def dedupe_window(self) -> float: ...

    @property
    def task_lease(self) -> float: ...

    def home_of(self, topic: str) -> str: ...

    def link(self) -> Link:
        """Raises NotConnected."""
        ...

    def call_sync(self, work: Callable[[Link], Awaitable[T]]) -> T: ...
