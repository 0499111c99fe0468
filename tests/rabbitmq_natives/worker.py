"""A worker process, to be killed: it notes each number that it handles in the queue `<queue>-done`, then emits it.

python -m tests.rabbitmq_natives.worker URL QUEUE KIND [POISON]

POISON is a number that kills it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from carteiro import Carteiro, Retry, constant
from carteiro.backends.rabbitmq import RabbitQueue


def make(url: str, name: str, kind: str, poison: str = "") -> Carteiro:
    app = Carteiro("shop", url, lease=4.0)
    source = RabbitQueue(name, type="stream", start="first") if kind == "stream" else RabbitQueue(name, declare=False)

    @app.subscriber(source, concurrency=20, retry=Retry(attempts=3, backoff=constant(0.1)))
    @app.publisher(RabbitQueue(f"{name}-emitted"))
    async def handle(number: int) -> int:
        if str(number) == poison:
            os.kill(os.getpid(), signal.SIGKILL)
        await app.publish(RabbitQueue(f"{name}-done"), number)
        return number

    return app


if __name__ == "__main__":
    asyncio.run(make(*sys.argv[1:]).run())
