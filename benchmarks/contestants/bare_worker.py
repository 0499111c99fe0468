"""The bare loop: `python -m benchmarks.contestants.bare_worker handle|calls`, the file in BENCH_FILE.

`handle` does what a worker must: a batch is claimed, each message is made a value with its metadata, decoded with
pydantic, given to the async handler, and retried or buried where that fails, while leases are renewed. `calls` claims
and settles the same batches and looks at nothing. The loop is blocked during a call: with a thread for the file, and a
batch claimed ahead, the loop was slower (two threads hand one interpreter lock to and fro).
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Any

import msgspec
import uvloop
from pydantic import TypeAdapter, ValidationError

from benchmarks.contestants.bare_file import ATTEMPTS, LEASE, BareFile, Held, Settled
from benchmarks.contestants.orders import FILE_VARIABLE, Order, Tally
from carteiro.message import Message

tally = Tally(every=5000)
decode = TypeAdapter(Order).validator.validate_json
decode_headers = msgspec.json.Decoder(dict[str, str]).decode


async def handle(order: Order) -> None:
    tally.count()


async def work(file: BareFile) -> None:
    held: list[Held] = []
    renewing = asyncio.create_task(renew(file, held))
    settled = Settled()
    while rows := file.turn(settled):
        held[:] = [(row[0], row[1]) for row in rows]
        settled = await handle_all(rows)
        await asyncio.sleep(0)
    renewing.cancel()


async def handle_all(rows: Sequence[Any]) -> Settled:
    settled = Settled()
    for row, attempt, published, id, topic, key, headers, correlation_id, body in rows:
        message = Message(
            id, topic, body, key, decode_headers(headers) if headers else {}, correlation_id or id, published, attempt
        )
        try:
            await handle(decode(message.body))
        except ValidationError as error:
            settled.dead.append((str(error), (row, attempt)))
        except Exception as error:
            if attempt >= ATTEMPTS:
                settled.dead.append((repr(error), (row, attempt)))
            else:
                settled.retried.append((2.0**attempt, (row, attempt)))
        else:
            settled.acked.append((row, attempt))
    return settled


async def renew(file: BareFile, held: list[Held]) -> None:
    while True:
        await asyncio.sleep(LEASE / 3)
        file.renew(held)


def calls_alone(file: BareFile) -> None:
    settled = Settled()
    while rows := file.turn(settled):
        settled = Settled(acked=[(row[0], row[1]) for row in rows])
        for _ in rows:
            tally.count()


def main() -> None:
    file = BareFile(os.environ[FILE_VARIABLE])
    if sys.argv[1] == "calls":
        calls_alone(file)
    else:
        uvloop.run(work(file))


if __name__ == "__main__":
    main()
