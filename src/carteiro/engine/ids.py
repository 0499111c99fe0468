"""The dedupe window for brokers that have none: a store remembers which ids were published.

An id is *claimed* before its message is published and *marked* afterwards, each by one write. Who meets a mark drops
its message; who meets a claim waits for what becomes of it. A publisher that dies between leaves a claim, which ends by
itself: the next one publishes, and where the dead one had done so just before, the message is there twice. It is never
lost, since no mark is made before the broker has it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from carteiro.message import Outgoing, Write
from carteiro.ports.broker import Broker
from carteiro.ports.clock import Clock
from carteiro.ports.store import Store

CLAIMED: Final = 60.0
"""Seconds for which a claim holds: longer than any try to publish takes."""
LOOK_AGAIN: Final = 0.1
"""Seconds after which one looks again what has become of another's claim."""
_DONE: Final = b"done"
_CLAIMED: Final = b"claimed"


class Ids:
    """Publishes to a broker what has not been published to it within the window of its id.

    `store` opens what remembers when it is first needed; `name` is the broker's among those that share the store.
    """

    def __init__(self, broker: Broker, store: Callable[[], Awaitable[Store]], name: str, clock: Clock) -> None:
        self._broker = broker
        self._store = store
        self._prefix = f"published:{name}:"
        self._clock = clock
        self._plain: dict[Outgoing, Outgoing] = {}

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        """As the broker's; what is dropped counts as routed."""
        if all(message.dedupe is None for message in messages):
            return await self._broker.publish(messages)
        store, unrouted = await self._store(), list[Outgoing]()
        left = self._first_of_each(messages)
        while left:
            mine, others = await self._claim(store, left)
            if mine:
                unrouted += await self._publish(store, mine)
            left = others
            if left:  # only after ours are out: two who wait for one another would wait until the claims end
                await self._clock.sleep(LOOK_AGAIN)
        return unrouted

    def _first_of_each(self, messages: Sequence[Outgoing]) -> list[Outgoing]:
        seen: set[str] = set()
        first: list[Outgoing] = []
        for message in messages:
            key = self._key(message)
            if message.dedupe is None or key not in seen:
                first.append(message)
            if message.dedupe is not None:
                seen.add(key)
        return first

    async def _claim(self, store: Store, messages: list[Outgoing]) -> tuple[list[Outgoing], list[Outgoing]]:
        """Those to publish now, their ids claimed; and those whose ids another has claimed. The rest is dropped."""
        keys = [self._key(one) for one in messages if one.dedupe is not None]
        claims = await store.write([Write(key, _CLAIMED, ttl=CLAIMED, expect=0) for key in keys])
        refused = {key for key, ok in zip(keys, claims, strict=True) if not ok}
        known = await store.get(sorted(refused))
        done = {key for key in refused if key in known and known[key].value == _DONE}
        mine = [one for one in messages if one.dedupe is None or self._key(one) not in refused]
        others = [one for one in messages if one.dedupe is not None and self._key(one) in refused - done]
        return mine, others

    async def _publish(self, store: Store, messages: list[Outgoing]) -> list[Outgoing]:
        """Those that no group gets: their ids are free again."""
        # The broker gets the same objects at each try, so that it can tell what of them it has already.
        plain = {self._plain.setdefault(one, msgspec.structs.replace(one, dedupe=None)): one for one in messages}
        try:
            unrouted = [plain[one] for one in await self._broker.publish(list(plain))]
        except BaseException:
            await store.write([Write(self._key(one), None) for one in messages if one.dedupe is not None])
            raise
        for one in messages:
            self._plain.pop(one, None)
        nowhere = set(unrouted)
        await store.write(
            [
                Write(self._key(one), None if one in nowhere else _DONE, ttl=one.dedupe)
                for one in messages
                if one.dedupe is not None
            ]
        )
        return unrouted

    def _key(self, message: Outgoing) -> str:
        return f"{self._prefix}{message.topic}:{message.id}"
