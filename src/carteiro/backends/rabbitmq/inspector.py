"""What an operator sees and does: the Inspector port, as far as AMQP tells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

import msgspec

from carteiro.backends.rabbitmq import methods
from carteiro.backends.rabbitmq.letters import Desk
from carteiro.backends.rabbitmq.mishaps import LOCKED, NOT_FOUND, Refused
from carteiro.backends.rabbitmq.natives import native_queue
from carteiro.backends.rabbitmq.publishing import Parcel, Publisher
from carteiro.backends.rabbitmq.register import Listing
from carteiro.backends.rabbitmq.server import Server
from carteiro.backends.rabbitmq.settling import replayed
from carteiro.errors import BrokerError, UnsupportedFeature
from carteiro.message import DeadLetter, Message, Subscription
from carteiro.ports.broker import GroupStatus


class RabbitInspector:
    def __init__(self, server: Server, publisher: Publisher) -> None:
        self._server = server
        self._sender = publisher

    async def groups(self) -> Sequence[GroupStatus]:
        """AMQP tells what waits and who consumes; of what is delayed, retried or in flight it tells nothing."""
        listing = await self._server.register.read()
        dead = Counter[tuple[str, str]]()
        for letters in listing.letters:
            dead[letters.topic, letters.group] += (await self._count(letters.queue) or (0, 0))[0]
        statuses: list[GroupStatus] = []
        for topic, group in sorted(listing.groups):
            counts = await self._count(self._server.names.queue(Subscription(topic, group)))
            if counts is not None:
                waiting, consumers = counts
                statuses.append(
                    GroupStatus(topic, group, waiting, None, None, None, dead[topic, group], None, consumers)
                )
        return statuses

    async def peek(self, topic: str, group: str, limit: int = 10) -> Sequence[Message]:
        raise UnsupportedFeature(
            f"{Subscription(topic, group)}: RabbitMQ cannot show what waits without delivering it; its management page "
            "can, and counts it as a delivery"
        )

    async def rewind(self, topic: str, group: str, to: float) -> int:
        raise UnsupportedFeature(
            f"{Subscription(topic, group)}: RabbitMQ's queues keep nothing that is acked; consume a "
            'RabbitQueue(type="stream"), which does'
        )

    async def dead_letters(
        self, queue: str | None = None, *, ids: Sequence[str] | None = None, limit: int | None = None
    ) -> Sequence[DeadLetter]:
        """Those that another look holds at the same moment are not seen."""
        found: list[DeadLetter] = []
        for name in await self._letter_queues(queue):
            async with Desk(self._server, name) as desk:
                found += [held.letter async for held in desk.letters(ids=ids, limit=limit)]
        found.sort(key=lambda letter: letter.at)
        return found if limit is None else found[:limit]

    async def replay(self, queue: str, *, ids: Sequence[str] | None = None, body: bytes | None = None) -> int:
        """Raises BrokerError, and keeps its letters, where a group that failed is no longer there."""
        count = 0
        for name in await self._letter_queues(queue):
            async with Desk(self._server, name) as desk:
                held = [one async for one in desk.letters(ids=ids)]
                if not held:
                    continue
                listing = await self._server.register.read()
                parcels = [self._parcel(one.letter, body, listing) for one in held]
                gone = await self._sender.send(parcels)
                await desk.take_out([one.tag for index, one in enumerate(held) if index not in gone])
                count += len(held) - len(gone)
                if gone:
                    raise BrokerError(
                        f"{count} were replayed: {len(gone)} have no queue any more, and stay in `{name}`"
                    )
        return count

    def _parcel(self, letter: DeadLetter, body: bytes | None, listing: Listing) -> Parcel:
        failed = Subscription(letter.topic, letter.group)
        if (failed.topic, failed.group) not in listing.groups:
            raise BrokerError(f"nothing was replayed: {failed} is not there any more")
        message = letter.message if body is None else msgspec.structs.replace(letter.message, body=body)
        return replayed(self._server.names.queue(failed), message)

    async def purge_dead(
        self, queue: str, *, ids: Sequence[str] | None = None, older_than: timedelta | None = None
    ) -> int:
        before = None if older_than is None else self._server.clock.time() - older_than.total_seconds()
        count = 0
        for name in await self._letter_queues(queue):
            async with Desk(self._server, name) as desk:
                gone = [held.tag async for held in desk.letters(ids=ids) if before is None or held.letter.at <= before]
                await desk.take_out(gone)
                count += len(gone)
        return count

    async def purge(self, topic: str, group: str) -> int:
        """What waits for its time, a delay or a retry, still comes."""
        subscription = Subscription(topic, group)
        try:
            (answer,) = await self._server.run([methods.queue_purge(self._server.names.queue(subscription))])
        except Refused as error:
            if error.code != NOT_FOUND:
                raise
            raise BrokerError(f"{subscription} is not there: nobody has declared it, or it was removed") from None
        return int(answer.message_count)

    async def remove_group(self, topic: str, group: str) -> None:
        """A RabbitQueue stays, with what is in it: only that the group has it is forgotten."""
        subscription = Subscription(topic, group)
        await self._server.register.remove(subscription)
        self._server.forget(subscription)
        names = self._server.names
        if native_queue(topic) is not None:  # it may be full of what others are waiting for
            return
        await self._server.run([methods.queue_delete(names.queue(subscription))])
        if topic.startswith("stream:"):
            await self._server.run([methods.queue_delete(names.position(subscription))])

    async def _letter_queues(self, dead_queue: str | None) -> list[str]:
        if dead_queue is not None:
            return [self._server.names.letters(dead_queue)]
        return sorted({letters.queue for letters in (await self._server.register.read()).letters})

    async def _count(self, queue: str) -> tuple[int, int] | None:
        """What waits, and who consumes; None where there is no such queue, or it is for another connection alone."""
        try:
            (answer,) = await self._server.run([methods.queue_declare(queue, passive=True)])
        except Refused as error:
            if error.code not in (NOT_FOUND, LOCKED):
                raise
            return None
        return answer.message_count, answer.consumer_count
