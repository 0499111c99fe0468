"""The bare loop: `python -m benchmarks.contestants.bare_worker handle|calls`, the broker in BENCH_BROKER.

`handle` does what a worker must: a batch is claimed, each message is made a value with its metadata, decoded with
pydantic, given to the async handler, and retried or buried where that fails, while leases are renewed. `calls` claims
and settles the same batches and looks at nothing.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import uvloop
from pydantic import TypeAdapter, ValidationError

from benchmarks.contestants.bare import ATTEMPTS, LEASE, Bare, Held, Settled
from benchmarks.contestants.orders import STAMPS, Order, Tally, broker, stamped

tally = Tally()
decode = TypeAdapter(Order).validator.validate_json


async def handle(order: Order) -> None:
    tally.count()


async def stamp(sent: float) -> None:
    stamped(sent)


def orders(body: bytes) -> Awaitable[None]:
    return handle(decode(body))


def stamps(body: bytes) -> Awaitable[None]:
    return stamp(float(body))


async def work(bare: Bare, call: Callable[[bytes], Awaitable[None]]) -> None:
    held: list[Held] = []
    renewing = asyncio.create_task(renew(bare, held))
    settled = Settled()
    while rows := await bare.turn(settled):
        held[:] = map(bare.held, rows)
        settled = await handle_all(bare, rows, call)
        await asyncio.sleep(0)
    renewing.cancel()


async def handle_all(bare: Bare, rows: Sequence[Any], call: Callable[[bytes], Awaitable[None]]) -> Settled:
    settled = Settled()
    for row in rows:
        message, held = bare.message(row), bare.held(row)
        try:
            await call(message.body)
        except ValidationError as error:
            settled.dead.append((str(error), held))
        except Exception as error:
            if message.attempt >= ATTEMPTS:
                settled.dead.append((repr(error), held))
            else:
                settled.retried.append((2.0**message.attempt, held))
        else:
            settled.acked.append(held)
    return settled


async def renew(bare: Bare, held: list[Held]) -> None:
    while True:
        await asyncio.sleep(LEASE / 3)
        await bare.renew(held)


async def calls_alone(bare: Bare) -> None:
    settled = Settled()
    while rows := await bare.turn(settled):
        settled = Settled(acked=[bare.held(row) for row in rows])
        for _ in rows:
            tally.count()


async def main(mode: str, url: str) -> None:
    others: list[Bare] = []
    bare: Bare
    # Only what is used is imported: it counts as the worker's memory.
    if url.startswith("redis://"):
        from benchmarks.contestants.bare_redis import BareRedis

        bare, others = BareRedis(url), [BareRedis(url, STAMPS)]
    elif url.startswith("amqp://"):
        from benchmarks.contestants.bare_rabbitmq import BareRabbitMQ

        bare, others = BareRabbitMQ(url), [BareRabbitMQ(url, STAMPS)]
    else:
        from benchmarks.contestants.bare_sqlite import BareFile

        bare = BareFile(url)
    if mode == "calls":
        await calls_alone(bare)
    else:
        await asyncio.gather(work(bare, orders), *(work(other, stamps) for other in others))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], broker()))
