"""A worker process, to be killed: it notes each element that it handles in the set `<list>-done`, then emits it.

python -m tests.redis_natives.worker URL LIST
"""

from __future__ import annotations

import asyncio
import sys

from redis.asyncio import Redis

from carteiro import Carteiro
from carteiro.backends.redis import RedisList


def make(url: str, name: str) -> Carteiro:
    app = Carteiro("shop", url, lease=2.0)
    client = Redis.from_url(url.partition("?")[0])

    @app.subscriber(RedisList(name), concurrency=20)
    @app.publisher(RedisList(f"{name}-emitted"))
    async def handle(number: int) -> int:
        await client.sadd(f"{name}-done", number)
        return number

    return app


if __name__ == "__main__":
    asyncio.run(make(*sys.argv[1:]).run())
