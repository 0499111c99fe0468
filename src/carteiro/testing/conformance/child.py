"""A process that does to a broker what it is told, for the tests to kill, stop and continue.

    python -m carteiro.testing.conformance.child URL

It reads one JSON array a line, `[command, argument…]`, and answers each with one line of JSON:

    ["publish", topic, [body…]]             -> true
    ["claim", topic, group, lease, count]   -> [[body, attempt]…], and keeps what it claimed
    ["write", key, value]                   -> whether it was written to the broker's store
    ["settle"]                              -> the bodies whose lease was lost, of all it had claimed
    ["work", topic, group, lease, done]     -> no answer: it handles what comes until it is killed

A worker acks each message and emits its body to the topic `done`; what starts with `dead` goes to the dead letters.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from carteiro.message import NO_HEADERS, Action, Delivery, Failure, Outcome, Outgoing, Subscription, Write, new_id
from carteiro.ports.broker import Broker, Consumer
from carteiro.ports.registry import open_backend


class Child:
    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._claimed: list[Delivery] = []
        self._consumer: Consumer | None = None

    async def publish(self, topic: str, bodies: list[str]) -> bool:
        await self._broker.publish([_message(topic, body.encode()) for body in bodies])
        return True

    async def write(self, key: str, value: str) -> bool:
        assert self._broker.store is not None, "it has no store"
        return (await self._broker.store.write([Write(key, value.encode())]))[0]

    async def claim(self, topic: str, group: str, lease: float, count: int) -> list[tuple[str, int]]:
        subscription = Subscription(topic, group, lease=lease)
        self._consumer = self._broker.consume([subscription])
        while (room := count - len(self._claimed)) > 0:
            self._claimed += await self._consumer.fetch({subscription: room})
        return [(one.message.body.decode(), one.message.attempt) for one in self._claimed]

    async def settle(self) -> list[str]:
        assert self._consumer is not None, "claim something first"
        lost = await self._consumer.settle([Outcome(one, Action.ACK) for one in self._claimed])
        return [one.message.body.decode() for one in lost]

    async def work(self, topic: str, group: str, lease: float, done: str) -> None:
        subscription = Subscription(topic, group, lease=lease)
        consumer = self._broker.consume([subscription])
        while True:
            deliveries = await consumer.fetch({subscription: 20})
            await consumer.settle([_end(one, done) for one in deliveries])


def _end(delivery: Delivery, done: str) -> Outcome:
    message = delivery.message
    if message.body.startswith(b"dead"):
        return Outcome(delivery, Action.DEAD, failure=Failure(message.attempt, message.published, "meant to die"))
    return Outcome(delivery, Action.ACK, emits=[_message(done, message.body, id=f"done-{message.id}")])


def _message(topic: str, body: bytes, id: str | None = None) -> Outgoing:
    return Outgoing(id or new_id(), topic, body, None, NO_HEADERS, "conformance")


async def main(url: str) -> None:
    backend = open_backend(url)
    await backend.broker.connect()
    child = Child(backend.broker)
    while line := await asyncio.to_thread(sys.stdin.readline):
        command, *arguments = json.loads(line)
        answer: Any = await getattr(child, command)(*arguments)
        print(json.dumps(answer), flush=True)
    await backend.broker.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
