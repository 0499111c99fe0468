"""The dedupe window for brokers that have none: a store remembers which ids were published.

An id is *claimed* before its message is published and *marked* afterwards, each by one write. Who meets a mark drops
its message; who meets a claim waits for what becomes of it, as long as it would for the broker. A publisher that dies
between leaves a claim, which ends by itself: the next one publishes, and where the dead one had done so just before,
the message is there twice. It is never lost, since no mark is made before the broker has it.

The store is asked before a message joins others on their way, and outside of the circuit breaker: a store that is away
is no reason to cut off the broker, nor a claim to hold up what has no id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final, TypeVar

import msgspec

from carteiro.errors import BrokerUnavailable
from carteiro.message import Outgoing, Write
from carteiro.ports.clock import Clock
from carteiro.ports.store import Store

T = TypeVar("T")

CLAIMED: Final = 60.0
"""Seconds, beyond those that a publish may take, for which a claim holds."""
LOOK_AGAIN: Final = 0.1
"""Seconds after which one looks again what has become of another's claim."""
_DONE: Final = b"done"
_CLAIMED: Final = b"claimed"

Put = Callable[[Sequence[Outgoing]], Awaitable[Collection[Outgoing]]]
"""Publishes, and returns those that no group gets."""


class Ids:
    """The ids of what is published to one broker, `identity`, by calls that take up to `timeout` seconds.

    `store` opens what remembers them when it is first needed.
    """

    def __init__(self, store: Callable[[], Awaitable[Store]], identity: str, clock: Clock, timeout: float) -> None:
        self._store = store
        self._prefix = f"published:{identity}:"
        self._clock = clock
        self._timeout = timeout
        self._under_way: set[asyncio.Task[list[Outgoing]]] = set()

    async def publish(self, messages: Sequence[Outgoing], put: Put) -> list[Outgoing]:
        """Those that no group gets; what is dropped counts as routed.

        Raises BrokerUnavailable where the store is away, or another's claim holds for longer than a publish may take.
        """
        try:
            store = await self._store()
            left = self._first_of_each(messages)
            until = self._clock.monotonic() + self._timeout
            unrouted: list[Outgoing] = []
            while left:
                mine, left = await self._claim(store, left)
                if mine:
                    unrouted += await self._whole(store, mine, put)
                if left:  # only after ours are out: two who wait for one another would wait until the claims end
                    await self._wait(left, until)
        except _StoreAway as error:
            raise BrokerUnavailable(f"the store that keeps the ids of what was published: {error}") from error.__cause__
        return unrouted

    async def finish(self) -> None:
        """Return when what was begun is published and marked, also of calls that were cancelled."""
        while self._under_way:
            await asyncio.wait(self._under_way)

    def _first_of_each(self, messages: Sequence[Outgoing]) -> list[Outgoing]:
        """Two messages of one id are one; those that the publisher gave none are never two of a kind."""
        first: dict[object, Outgoing] = {}
        for message in messages:
            first.setdefault(message if message.dedupe is None else self._key(message), message)
        return list(first.values())

    async def _claim(self, store: Store, messages: list[Outgoing]) -> tuple[list[Outgoing], list[Outgoing]]:
        """Those to publish now, their ids claimed; and those whose ids another has claimed. The rest is dropped."""
        keys = [self._key(one) for one in messages if one.dedupe is not None]
        ttl = self._timeout + CLAIMED
        claims = await _asked(store.write([Write(key, _CLAIMED, ttl=ttl, expect=0) for key in keys]))
        refused = {key for key, ok in zip(keys, claims, strict=True) if not ok}
        known = await _asked(store.get(sorted(refused)))
        done = {key for key in refused if key in known and known[key].value == _DONE}
        mine = [one for one in messages if one.dedupe is None or self._key(one) not in refused]
        others = [one for one in messages if one.dedupe is not None and self._key(one) in refused - done]
        return mine, others

    async def _whole(self, store: Store, messages: list[Outgoing], put: Put) -> list[Outgoing]:
        """Publish and mark, also if the caller is cancelled meanwhile: nobody else knows that the broker has it."""
        task = asyncio.create_task(self._publish(store, messages, put))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def _publish(self, store: Store, messages: list[Outgoing], put: Put) -> list[Outgoing]:
        """Those that no group gets: their ids are free again."""
        plain = {msgspec.structs.replace(one, dedupe=None): one for one in messages}
        with_ids = [one for one in messages if one.dedupe is not None]
        try:
            unrouted = [plain[one] for one in await put(list(plain))]
        except BaseException:
            await _asked(store.write([Write(self._key(one), None) for one in with_ids]))
            raise
        nowhere = set(unrouted)
        marks = [Write(self._key(one), None if one in nowhere else _DONE, ttl=one.dedupe) for one in with_ids]
        await _asked(store.write(marks))
        return unrouted

    async def _wait(self, left: list[Outgoing], until: float) -> None:
        if self._clock.monotonic() > until:
            raise BrokerUnavailable(
                f"another publisher has claimed the id `{left[0].id}` of `{left[0].topic}`, and has not said in "
                f"{self._timeout:g} s what became of it: try again, its claim ends by itself"
            )
        await self._clock.sleep(LOOK_AGAIN)

    def _key(self, message: Outgoing) -> str:
        return f"{self._prefix}{message.topic}:{message.id}"


class _StoreAway(Exception):
    """What the store is asked cannot be answered now."""


async def _asked(answer: Awaitable[T]) -> T:
    try:
        return await answer
    except BrokerUnavailable as error:
        raise _StoreAway(str(error)) from error
