"""Looks at an app's brokers for whoever asks how they are.

One look at a time, however many ask, and none more often than once a second: health is asked most when a broker can
least bear it. Nobody waits longer than PATIENCE, which is below the second that Kubernetes gives a probe: a look that
takes longer goes on, and its answer is for the next who asks.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from carteiro.app import Carteiro
from carteiro.connection import Connection, Connections
from carteiro.durations import shown
from carteiro.engine.failures import describe
from carteiro.errors import BrokerCorrupted, BrokerError, BrokerUnavailable, NotConnected, UnsupportedFeature
from carteiro.message import Subscription
from carteiro.ports.broker import GroupStatus, Inspector
from carteiro.ports.clock import Clock

if TYPE_CHECKING:
    from carteiro.engine.outbox_file import OutboxStatus

FRESH: Final = 1.0
"""Seconds for which a look is good enough."""
PATIENCE: Final = 0.5
SLOW: Final = 5.0
"""Seconds after which a look that has not ended says something of the broker, and not only of its queues' number."""
STALE: Final = 30.0
"""Seconds for which the last one is shown while the next, not yet slow, is under way."""
GIVE_UP: Final = 15.0
"""Seconds after which it is begun anew: longer than a backend takes to find its server gone."""


class Sight(msgspec.Struct, frozen=True):
    """What a look at one broker has shown."""

    groups: Mapping[tuple[str, str], GroupStatus] | None = None
    """By topic and group; None where that is not known, or the broker has no way to tell."""
    away: str | None = None
    """Why the broker cannot be reached."""
    blind: str | None = None
    """Why it is there, or may be, and nothing is known of it."""
    outbox: OutboxStatus | None = None
    outbox_trouble: str | None = None
    """Why it is not known what the outbox holds."""


class Observer:
    """Looks at one broker."""

    def __init__(self, connection: Connection, clock: Clock) -> None:
        self.answered: float | None = None
        """When the broker last gave its counts, in seconds since the epoch."""
        self._connection = connection
        self._clock = clock
        self._sight = Sight()
        self._seen: float | None = None
        self._began = 0.0
        self._silent_since: float | None = None
        """When the first look began that has got no answer; None once one has."""
        self._looking: asyncio.Task[None] | None = None

    async def look(self) -> Sight:
        """What is seen now, or was seen a moment ago."""
        now = self._clock.monotonic()
        age = math.inf if self._seen is None else now - self._seen
        if self._looking is None and age < FRESH:
            return self._sight
        if self._looking is not None and now - self._began > GIVE_UP:
            self._looking.cancel()
            self._looking = None
        if self._looking is None:
            self._began = now
            self._looking = asyncio.create_task(self._see(), name="carteiro health")
        if self._silent_since is None:
            self._silent_since = now
        await self._wait(self._looking)
        silent = 0.0 if self._silent_since is None else now - self._silent_since
        if self._looking is None or self._sight.away or (silent < SLOW and age < STALE):
            return self._sight
        said = f"it has not answered for {shown(PATIENCE + silent)}"
        return msgspec.structs.replace(self._sight, groups=None, blind=said)

    async def _wait(self, looking: asyncio.Task[None]) -> None:
        patience = asyncio.ensure_future(self._clock.sleep(PATIENCE))
        try:
            await asyncio.wait((looking, patience), return_when=asyncio.FIRST_COMPLETED)
        finally:
            patience.cancel()

    async def _see(self) -> None:
        await self._see_outbox()
        groups = away = blind = None
        try:
            groups = await self._groups()
        except (BrokerUnavailable, BrokerCorrupted, NotConnected) as error:
            away = str(error)
        except UnsupportedFeature:
            pass
        except Exception as error:
            blind = f"it does not tell how many messages there are: {describe(error)}"
        self._sight = msgspec.structs.replace(self._sight, groups=groups, away=away, blind=blind)
        self._seen = self._clock.monotonic()
        self._silent_since = self._looking = None

    async def _see_outbox(self) -> None:
        outbox, trouble = self._sight.outbox, None
        try:
            outbox = await self._connection.publisher.outbox()
        except BrokerError as error:
            trouble = str(error)
        self._sight = msgspec.structs.replace(self._sight, outbox=outbox, outbox_trouble=trouble)

    async def _groups(self) -> Mapping[tuple[str, str], GroupStatus] | None:
        broker = self._connection.broker
        if not isinstance(broker, Inspector):
            return None
        groups = {(one.topic, one.group): one for one in await broker.groups()}
        self.answered = self._clock.time()
        return groups


class Watch:
    """Keeps an eye on all brokers of one app, over all its lives."""

    def __init__(self, app: Carteiro) -> None:
        self.observers: Mapping[str, Observer] = {}
        self._app = app
        self._connections: Connections | None = None
        self._starving: dict[tuple[str, Subscription], float] = {}

    async def look(self) -> Mapping[str, Sight]:
        """By broker. Raises NotConnected where the app is not."""
        connections = self._app.connections
        if connections is not self._connections:
            self._connections = connections
            self._starving.clear()
            self.observers = {name: Observer(one, self._app.clock) for name, one in connections.items()}
        sights = await asyncio.gather(*(observer.look() for observer in self.observers.values()))
        return dict(zip(self.observers, sights, strict=True))

    def starving(self, broker: str, subscription: Subscription, waiting: int | None) -> float:
        """Seconds for which messages were seen to wait while there was room for them, and none came in."""
        worker = self._app.life.workers.get(broker)
        idle = worker.starved(subscription) if worker is not None and waiting else None
        if idle is None:
            self._starving.pop((broker, subscription), None)
            return 0.0
        now = self._app.clock.monotonic()
        return min(idle, now - self._starving.setdefault((broker, subscription), now))
