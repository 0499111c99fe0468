"""Replies: many requests in flight over one inbox.

An inbox is an ephemeral subscription to `$reply.<inbox>.*`. Each request gets a topic of its own under it, as its
`reply-to`; whoever answers publishes there, and what comes is handed to whoever waits for that topic. A reply that
nobody waits for any more is dropped.
"""

from __future__ import annotations

import asyncio
import itertools
import logging

from carteiro.engine.reconnect import reconnect_wait
from carteiro.errors import NotConnected, RequestFailed, RequestTimeout
from carteiro.message import ERROR, Action, Message, Outcome, Subscription
from carteiro.ports.broker import Broker, Consumer
from carteiro.ports.clock import Clock

log = logging.getLogger("carteiro.requests")

ROOM = 1000


class Inbox:
    """One connection's inbox, opened by its first request. `name` is its own: who shared it would take its replies."""

    def __init__(self, broker: Broker, name: str, clock: Clock) -> None:
        self._broker = broker
        self._clock = clock
        self._prefix = f"$reply.{name}."
        self._subscription = Subscription(self._prefix + "*", name, ephemeral=True)
        self._numbers = itertools.count(1)
        self._waiting: dict[str, asyncio.Future[Message]] = {}
        self._opening = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        return self._task is not None

    async def open(self) -> None:
        async with self._opening:
            if self._task is None:
                await self._broker.declare([self._subscription])
                self._task = asyncio.create_task(self._receive(), name="carteiro inbox")

    def expect(self) -> tuple[str, asyncio.Future[Message]]:
        """A topic to reply to, and what will hold the reply."""
        topic = f"{self._prefix}{next(self._numbers)}"
        reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[topic] = reply
        return topic, reply

    async def reply(self, asked: str, topic: str, reply: asyncio.Future[Message], timeout: float) -> Message:
        """Wait for the reply to what was asked of `asked`; raises RequestTimeout, RequestFailed or NotConnected."""
        timer = asyncio.ensure_future(self._clock.sleep(timeout))
        try:
            await asyncio.wait((reply, timer), return_when=asyncio.FIRST_COMPLETED)
            if not reply.done():
                raise RequestTimeout(f"no reply from `{asked}` within {timeout:g} s")
            if reply.cancelled():
                raise NotConnected(f"the app was closed before `{asked}` had replied")
            message = reply.result()
        finally:
            timer.cancel()
            self.forget(topic)
        if ERROR in message.headers:
            raise RequestFailed(message.headers[ERROR])
        return message

    def forget(self, topic: str) -> None:
        """Drop what may still come to this topic."""
        self._waiting.pop(topic, None)

    async def close(self) -> None:
        """Requests that are under way raise NotConnected."""
        for reply in self._waiting.values():
            if not reply.done():
                reply.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _receive(self) -> None:
        consumer: Consumer | None = None
        room = {self._subscription: ROOM}
        tries = 0
        try:
            while True:
                try:
                    consumer = consumer or self._broker.consume([self._subscription])
                    deliveries = await consumer.fetch(room)
                    for delivery in deliveries:
                        reply = self._waiting.get(delivery.message.topic)
                        if reply is not None and not reply.done():
                            reply.set_result(delivery.message)
                    await consumer.settle([Outcome(delivery, Action.ACK) for delivery in deliveries])
                    tries = 0
                except Exception as error:
                    log.warning("no replies come in, trying again: %s", error)
                    await self._clock.sleep(reconnect_wait(tries))
                    tries += 1
        finally:
            if consumer is not None:
                await consumer.close()
