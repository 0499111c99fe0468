"""What an operator sees and does: the Inspector port."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import msgspec

from carteiro.backends.redis import scripts
from carteiro.backends.redis.mishaps import NoQueue
from carteiro.backends.redis.publishing import micros, raw
from carteiro.backends.redis.routes import unknown, unpack_route
from carteiro.backends.redis.server import Server
from carteiro.errors import BrokerError
from carteiro.message import DeadLetter, Failure, Message, Subscription
from carteiro.ports.broker import GroupStatus
from carteiro.ports.records import at_attempt, repack, unpack

_Words = tuple[str, str, str, str, tuple[Failure, ...]]
_decode_letter = msgspec.msgpack.Decoder(tuple[_Words, int, float, Message]).decode


class RedisInspector:
    def __init__(self, server: Server) -> None:
        self._server = server

    async def groups(self) -> Sequence[GroupStatus]:
        """Of the waiting and the claimed, `oldest` looks at the thousand that come next."""
        now, listening, *queues = await self._server.run(scripts.GROUPS)
        consumers = Counter(one.decode().partition(" ")[2] for one in listening)
        statuses = [self._status(now, consumers, *queue) for queue in queues]
        return sorted(statuses, key=lambda status: (status.topic, status.group))

    async def peek(self, topic: str, group: str, limit: int = 10) -> Sequence[Message]:
        """Each as its next attempt will see it. Raises BrokerError for an unknown group."""
        messages: list[Message] = []
        while len(messages) < limit:
            found = await self._run_on(Subscription(topic, group), scripts.PEEK, limit, len(messages))
            if not found:
                break
            messages += (unpack(record, tries + 1) for tries, record in zip(found[::2], found[1::2], strict=True))
        return messages

    async def dead_letters(
        self, queue: str | None = None, *, ids: Sequence[str] | None = None, limit: int | None = None
    ) -> Sequence[DeadLetter]:
        if limit == 0:
            return []
        known, last = _known(ids), 0
        letters: list[DeadLetter] = []
        while not limit or len(letters) < limit:
            left = limit - len(letters) if limit else 0
            answer = await self._server.run(scripts.LETTERS, queue or False, known, left, last)
            if not answer:
                break
            letters += (_letter(id.decode(), letter) for id, letter in zip(answer[::2], answer[1::2], strict=True))
            last = int(answer[-2])
            if isinstance(known, list):
                known = [id for id in known if int(id) > last]
        return letters

    async def replay(self, queue: str, *, ids: Sequence[str] | None = None, body: bytes | None = None) -> int:
        """Raises BrokerError, and replays none, where a group that failed is no longer there."""
        letters = await self.dead_letters(queue, ids=ids)
        if not letters:
            return 0
        self._server.forget_routes()
        routes = await self._server.routes()
        again: list[tuple[Any, ...]] = []
        for letter in letters:
            subscription = Subscription(letter.topic, letter.group)
            element = raw(self._server.rows() + repack(letter.message, body))
            again.append((letter.id, self._server.queue(subscription), routes.is_ordered(subscription), element))
        try:
            replayed: int = await self._server.run(scripts.REPLAY, *again)
        except NoQueue as missing:
            raise BrokerError(f"nothing was replayed: the group of `{missing}` was removed meanwhile") from None
        return replayed

    async def purge_dead(
        self, queue: str, *, ids: Sequence[str] | None = None, older_than: timedelta | None = None
    ) -> int:
        age = micros((older_than or timedelta(0)).total_seconds())
        purged: int = await self._server.run(scripts.EXHUME, queue, _known(ids), age)
        return purged

    async def purge(self, topic: str, group: str) -> int:
        """Raises BrokerError for an unknown group."""
        purged: int = await self._run_on(Subscription(topic, group), scripts.PURGE)
        return purged

    async def remove_group(self, topic: str, group: str) -> None:
        await self._server.remove([Subscription(topic, group)])

    async def rewind(self, topic: str, group: str, to: float) -> int:
        """It reads all that waits for the group, in one step of the server: about a second for a million."""
        subscription = Subscription(topic, group)
        self._server.forget_routes()
        routes = await self._server.routes()
        logs = routes.logs(topic)
        if not logs:
            raise BrokerError(
                f"cannot rewind {subscription}: `{topic}` keeps nothing; "
                'declare the topic with a retention, such as retain="7d", and what is published from then on is kept'
            )
        ordered = routes.is_ordered(subscription)
        added: int = await self._run_on(subscription, scripts.REWIND, ordered, logs, micros(to))
        return added

    async def _run_on(self, subscription: Subscription, script: scripts.Script, *request: Any) -> Any:
        try:
            return await self._server.run(script, self._server.queue(subscription), *request)
        except NoQueue:
            raise unknown(subscription) from None

    def _status(self, now: int, consumers: Counter[str], route: bytes, *counts: int) -> GroupStatus:
        topic, group, _, _ = unpack_route(route)
        waiting, later, retrying, in_flight, blocked, dead, oldest = counts
        age = (now - oldest) / 1_000_000 if oldest else None
        listening = consumers[self._server.queue(Subscription(topic, group))]
        delayed = later - retrying + blocked
        return GroupStatus(topic, group, waiting, delayed, retrying, in_flight, dead, age, listening)


def _known(ids: Sequence[str] | None) -> list[str] | bool:
    """What is no number is nobody's id."""
    return False if ids is None else [id for id in ids if id.isdecimal()]


def _letter(id: str, packed: bytes) -> DeadLetter:
    (queue, topic, group, reason, history), attempt, died_at, message = _decode_letter(packed)
    return DeadLetter(id, queue, topic, group, at_attempt(message, attempt), reason, died_at, history)
