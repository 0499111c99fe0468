"""Publishing with carteiro, the broker in CARTEIRO_BROKER."""

from __future__ import annotations

import uvloop

from benchmarks.contestants.carteiro_app import STAMPS, app
from benchmarks.contestants.orders import ORDER, TOPIC
from benchmarks.contestants.publishing import Publisher, run


async def main() -> None:
    async with app:
        await run(
            Publisher(
                one=lambda: app.publish(TOPIC, ORDER),
                many=lambda count: app.publish_many(TOPIC, [ORDER] * count),
                stamp=lambda sent: app.publish(STAMPS, sent),
            )
        )


if __name__ == "__main__":
    uvloop.run(main())
