"""The other side of `wait_for`: an event comes, and those who wait for it go on.

The event is kept by its key first, and waiters are looked for then; a task that begins to wait leaves its waiter first
and looks for the event then. So whichever comes first, one of the two sees the other; where both do, the first to write
the step's result is believed and the other's copy of the task finds it.
"""

from __future__ import annotations

import logging
from typing import Final

import msgspec

from carteiro.engine.endings import Endings, Surroundings
from carteiro.engine.routes import Handler
from carteiro.errors import BrokerUnavailable
from carteiro.message import CONTENT_TYPE, Action, Delivery, Message, Outcome, Outgoing, Subscription, Write
from carteiro.tasks.bench import Bench
from carteiro.tasks.records import RESUME, RUN_TTL, Record, record_of, task_key
from carteiro.tasks.records import pack as pack_record
from carteiro.tasks.steps import Happened, Waiter, event_key, happened_of, pack, waiter_of, waiters_prefix

log = logging.getLogger("carteiro.tasks")

KEPT: Final = 86_400.0
"""Seconds for which an event is kept for tasks that come to wait for it later."""
STEP_BACK: Final = 0.5


async def happened(message: Message) -> None:
    """Stands for the events among the app's handlers; `EventAttempt` does its work."""


class EventAttempt:
    """Takes up the tasks that wait for the events of one topic."""

    def __init__(self, handler: Handler, subscription: Subscription, around: Surroundings, bench: Bench) -> None:
        self._endings = Endings(handler, subscription, around)
        self._subscription = subscription
        self._around = around
        self._bench = bench

    async def __call__(self, delivery: Delivery) -> Outcome:
        message = delivery.message
        try:
            if message.attempt > self._endings.retry.attempts:
                return self._endings.lost(delivery)
            return await self._tell(delivery, message)
        except BrokerUnavailable as error:
            log.warning("the event %s of %s waits for the store: %s", message.id, message.topic, error)
            return Outcome(delivery, Action.RELEASE, delay=STEP_BACK)
        except BaseException as error:
            return self._endings.failed(delivery, error)

    async def _tell(self, delivery: Delivery, message: Message) -> Outcome:
        store, topic = self._bench.store, message.topic
        event = pack(Happened(message.published, message.body, message.headers.get(CONTENT_TYPE), message.id))
        keys = {None, message.key}
        await store.write([Write(event_key(topic, key), event, ttl=KEPT) for key in keys])
        writes: list[Write] = []
        emits: list[Outgoing] = []
        for key in keys:
            for place, entry in (await store.scan(waiters_prefix(topic, key))).items():
                waiter = waiter_of(entry.value)
                if waiter.key != key or message.id in waiter.heard:
                    continue  # a key that begins with this one; or a copy of what it has waited for before
                if await self._decided(waiter, event, message.id):
                    resumed = await self._resumed(waiter)
                    emits += () if resumed is None else (self._resume(waiter, resumed),)
                writes.append(Write(place, None))
        return Outcome(delivery, Action.ACK, emits=emits, writes=writes)

    async def _decided(self, waiter: Waiter, event: bytes, id: str) -> bool:
        """Have this event be what came of its waiting; False if something else did."""
        store = self._bench.store
        if (await store.write([Write(waiter.step, event, ttl=RUN_TTL, expect=0)]))[0]:
            return True
        entry = (await store.get((waiter.step,))).get(waiter.step)
        return entry is not None and happened_of(entry.value).id == id  # before a crash: it may not have been told

    async def _resumed(self, waiter: Waiter) -> int | None:
        """The number of the copy that takes it up, in its record so that older ones are known as such; None if it is
        over.
        """
        key = task_key(waiter.id)
        while True:
            entry = (await self._bench.store.get((key,))).get(key)
            record = record_of(entry)
            if record is not None and record.is_over:
                return None
            number = waiter.resumed + 1 if record is None else max(record.resumed, waiter.resumed) + 1
            known = record or Record("waiting", waiter.headers.get("type", ""), self._around.clock.time(), waiter.topic)
            write = Write(
                key, pack_record(msgspec.structs.replace(known, resumed=number, until=None)), ttl=RUN_TTL,
                expect=0 if entry is None else entry.version,
            )  # fmt: skip
            if (await self._bench.store.write([write]))[0]:
                return number

    def _resume(self, waiter: Waiter, number: int) -> Outgoing:
        return Outgoing(
            waiter.id, waiter.topic, waiter.body, waiter.message_key, {**waiter.headers, RESUME: str(number)},
            waiter.correlation_id, 0.0, broker=self._around.broker_of(waiter.topic, None),
        )  # fmt: skip
