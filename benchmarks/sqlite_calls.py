"""What the SQLite backend's calls alone cost: publish, claim and settle, no engine, no decoding, no handler.

    python benchmarks/sqlite_calls.py [--messages 100000] [--batch 500] [--backlog 0] [--busy]

`together` settles one batch while the next is fetched, as the engine does, so that both share a commit. `--backlog`
puts that many waiting messages in the way first; `--busy` keeps the event loop computing as a busy handler would.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from carteiro.message import NO_HEADERS, Action, Delivery, Outcome, Outgoing, Subscription, new_id
from carteiro.ports.broker import Broker, Consumer
from carteiro.ports.clock import SYSTEM_CLOCK
from carteiro.ports.registry import open_backend

BODY = b'{"id": 123, "sku": "abc-123", "amount": "12.50"}'
SUBSCRIPTION = Subscription("orders.placed", "bench")


def messages(count: int) -> list[Outgoing]:
    ids = [new_id() for _ in range(count)]
    return [Outgoing(id, SUBSCRIPTION.topic, BODY, None, NO_HEADERS, id) for id in ids]


async def publish(broker: Broker, total: int, batch: int) -> float:
    batches = [messages(batch) for _ in range(total // batch)]
    start = time.perf_counter()
    for one in batches:
        await broker.publish(one)
    return time.perf_counter() - start


async def publish_singly(broker: Broker, total: int) -> float:
    singles = messages(total)
    start = time.perf_counter()
    for one in singles:
        await broker.publish([one])
    return time.perf_counter() - start


def acks(deliveries: Sequence[Delivery]) -> list[Outcome]:
    return [Outcome(delivery, Action.ACK) for delivery in deliveries]


async def in_turn(consumer: Consumer, total: int, batch: int) -> float:
    room = {SUBSCRIPTION: batch}
    start = time.perf_counter()
    done = 0
    while done < total:
        deliveries = await consumer.fetch(room)
        await consumer.settle(acks(deliveries))
        done += len(deliveries)
    return time.perf_counter() - start


async def together(consumer: Consumer, total: int, batch: int) -> float:
    room = {SUBSCRIPTION: batch}
    start = time.perf_counter()
    deliveries = await consumer.fetch(room)
    done = len(deliveries)
    while done < total:
        settled = asyncio.ensure_future(consumer.settle(acks(deliveries)))
        deliveries = await consumer.fetch(room)
        await settled
        done += len(deliveries)
    await consumer.settle(acks(deliveries))
    return time.perf_counter() - start


async def compute() -> None:
    while True:
        sum(range(20_000))
        await asyncio.sleep(0)


async def main(total: int, batch: int, backlog: int, busy: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        broker = open_backend(f"sqlite:///{Path(folder) / 'bench.db'}", clock=SYSTEM_CLOCK).broker
        await broker.connect()
        await broker.declare([SUBSCRIPTION])
        if backlog:
            await publish(broker, backlog, batch)
        load = asyncio.create_task(compute()) if busy else None
        print(f"publish, one by one       {1_000 / await publish_singly(broker, 1_000):>10,.0f}/s")
        print(f"publish, batches of {batch:<6}{total / await publish(broker, total * 2, batch) * 2:>10,.0f}/s")
        consumer = broker.consume([SUBSCRIPTION])
        print(f"claim, then settle        {total / await in_turn(consumer, total, batch):>10,.0f}/s")
        print(f"claim and settle together {total / await together(consumer, total, batch):>10,.0f}/s")
        if load is not None:
            load.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await load
        await broker.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--backlog", type=int, default=0)
    parser.add_argument("--busy", action="store_true")
    options = parser.parse_args()
    asyncio.run(main(options.messages, options.batch, options.backlog, options.busy))
