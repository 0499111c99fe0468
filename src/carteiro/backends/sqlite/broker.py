"""The Broker port on a file that many processes share."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final

from carteiro.backends.sqlite.consumer import SqliteConsumer
from carteiro.backends.sqlite.database import Database
from carteiro.backends.sqlite.declaring import declare
from carteiro.backends.sqlite.inspector import SqliteInspector
from carteiro.backends.sqlite.publishing import publish
from carteiro.backends.sqlite.store import SqliteStore
from carteiro.errors import BrokerError
from carteiro.message import Outgoing, Retention, Subscription
from carteiro.ports.broker import Unrouted
from carteiro.ports.features import NATIVE, Capability, Features, Support

_HOW: Final = {
    Capability.BROADCAST: Support("native", "an ephemeral group a process, gone 30 s after it"),
    Capability.MULTIPROCESS: Support("native", "on one machine, over one file"),
    Capability.DURABLE: Support("native", "each commit is on the disk: WAL, synchronous=FULL"),
}
FEATURES: Final = Features("sqlite", {capability: _HOW.get(capability, NATIVE) for capability in Capability})


class SqliteBroker(SqliteInspector):
    """Publishes, declares, and hands out consumers; `SqliteInspector` adds what an operator sees and does."""

    features = FEATURES

    def __init__(self, database: Database, store: SqliteStore) -> None:
        super().__init__(database)
        self.store = store
        self.unrouted = Unrouted()
        self._connected = False
        self._consumers: list[SqliteConsumer] = []

    async def connect(self) -> None:
        if not self._connected:
            await self._database.open()
            self._connected = True

    async def close(self) -> None:
        """Closes its consumers; all that was asked for before is committed."""
        if self._connected:
            self._connected = False
            for consumer in self._consumers:
                with contextlib.suppress(BrokerError):  # what cannot be tidied away now expires by itself
                    await consumer.close()
            self._consumers.clear()
            await self._database.close()

    async def declare(self, subscriptions: Sequence[Subscription], retentions: Sequence[Retention] = ()) -> None:
        await self._database.write(lambda session: declare(session, subscriptions, retentions))
        for subscription in subscriptions:
            if subscription.ephemeral:
                self._database.keeper.keep(subscription)

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        return await self._database.write(lambda session: publish(session, messages))

    def consume(self, subscriptions: Sequence[Subscription]) -> SqliteConsumer:
        consumer = SqliteConsumer(self._database, subscriptions, self.unrouted)
        self._consumers = [one for one in self._consumers if not one.closed] + [consumer]
        return consumer
