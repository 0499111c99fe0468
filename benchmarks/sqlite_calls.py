"""What the SQLite backend's calls alone cost, beside a bare loop: no engine, no decoding, no handler.

    python -m benchmarks.sqlite_calls [--messages 20000] [--batch 500] [--rounds 3] [--backlog 0] [--busy]

`together` settles one batch while the next is fetched, as the engine does, so that both share a commit. `--backlog`
puts that many waiting messages in the way first; `--busy` keeps the event loop computing as a busy handler would.
Rounds of both are run in turns, and the CPU time a message (all threads) is printed beside the rate: on a machine that
others use, too, it tells more.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from benchmarks.contestants.bare import Settled
from benchmarks.contestants.bare_sqlite import BareFile
from carteiro.message import NO_HEADERS, Action, Delivery, Outcome, Outgoing, Subscription, new_id
from carteiro.ports.broker import Broker, Consumer
from carteiro.ports.clock import SYSTEM_CLOCK
from carteiro.ports.registry import open_backend

BODY = b'{"id": 123, "sku": "abc-123", "amount": "12.50"}'
SUBSCRIPTION = Subscription("orders.placed", "bench")
SINGLE = 1_000
"""How many are published one by one."""


def messages(count: int) -> list[Outgoing]:
    ids = [new_id() for _ in range(count)]
    return [Outgoing(id, SUBSCRIPTION.topic, BODY, None, NO_HEADERS, id) for id in ids]


async def publish(broker: Broker, total: int, batch: int) -> None:
    for _ in range(total // batch):
        await broker.publish(messages(batch))


def acks(deliveries: Sequence[Delivery]) -> list[Outcome]:
    return [Outcome(delivery, Action.ACK) for delivery in deliveries]


async def in_turn(consumer: Consumer, total: int, batch: int) -> None:
    done = 0
    while done < total:
        deliveries = await consumer.fetch({SUBSCRIPTION: batch})
        await consumer.settle(acks(deliveries))
        done += len(deliveries)


async def together(consumer: Consumer, total: int, batch: int) -> None:
    room = {SUBSCRIPTION: batch}
    deliveries = await consumer.fetch(room)
    done = len(deliveries)
    while done < total:
        settled = asyncio.ensure_future(consumer.settle(acks(deliveries)))
        deliveries = await consumer.fetch(room)
        await settled
        done += len(deliveries)
    await consumer.settle(acks(deliveries))


async def bare_publish(file: BareFile, total: int, batch: int) -> None:
    for _ in range(total // batch):
        file.publish(batch)


async def bare_turns(file: BareFile, total: int, batch: int) -> None:
    settled, done = Settled(), 0
    while done < total:
        rows = await file.turn(settled, batch)
        settled = Settled(acked=[file.held(row) for row in rows])
        done += len(rows)
    await file.turn(settled, 0)


class Table:
    """Rates and CPU of each call, over the rounds."""

    def __init__(self) -> None:
        self._seen: dict[str, list[tuple[float, float]]] = {}

    async def measure(self, name: str, count: int, call: Callable[[], Awaitable[None]]) -> None:
        at, cpu = time.perf_counter(), time.process_time()
        await call()
        seconds, used = time.perf_counter() - at, time.process_time() - cpu
        self._seen.setdefault(name, []).append((count / seconds, used / count * 1e6))

    def show(self) -> None:
        for name, rounds in self._seen.items():
            rate, cpu = (statistics.median(values) for values in zip(*rounds, strict=True))
            print(f"{name:<34}{rate:>10,.0f}/s{cpu:>9.1f} µs CPU a message")


async def compute() -> None:
    while True:
        sum(range(20_000))
        await asyncio.sleep(0)


async def main(total: int, batch: int, rounds: int, backlog: int, busy: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bare = BareFile(f"sqlite:///{Path(folder) / 'bare.db'}")
        bare.create()
        broker = open_backend(f"sqlite:///{Path(folder) / 'bench.db'}", clock=SYSTEM_CLOCK).broker
        await broker.connect()
        await broker.declare([SUBSCRIPTION])
        consumer = broker.consume([SUBSCRIPTION])
        if backlog:
            await publish(broker, backlog, batch)
            await bare_publish(bare, backlog, batch)
        load = asyncio.create_task(compute()) if busy else None
        table = Table()
        for _ in range(rounds):
            await table.measure("bare: publish, one by one", SINGLE, lambda: bare_publish(bare, SINGLE, 1))
            await table.measure("publish, one by one", SINGLE, lambda: publish(broker, SINGLE, 1))
            await table.measure(f"bare: publish, {batch} at once", total, lambda: bare_publish(bare, total, batch))
            await table.measure(f"publish, {batch} at once", total * 2, lambda: publish(broker, total * 2, batch))
            await table.measure("bare: settle and claim together", total, lambda: bare_turns(bare, total, batch))
            await table.measure("claim, then settle", total, lambda: in_turn(consumer, total, batch))
            await table.measure("claim and settle together", total, lambda: together(consumer, total, batch))
        table.show()
        if load is not None:
            load.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await load
        await broker.close()
        bare.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backlog", type=int, default=0)
    parser.add_argument("--busy", action="store_true")
    options = parser.parse_args()
    asyncio.run(main(options.messages, options.batch, options.rounds, options.backlog, options.busy))
