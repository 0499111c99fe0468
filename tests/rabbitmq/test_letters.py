"""Dead letters by the hundred: a channel passes no more than 32 acks at once on to a quorum queue."""

from __future__ import annotations

from carteiro.message import Action
from tests.rabbitmq.stage import ORDERS, connected, outgoing, patiently, settle, take


async def test_what_is_purged_or_replayed_of_many_dead_letters_is_gone_from_them(each_rabbitmq_url: str):
    async with connected(each_rabbitmq_url, ORDERS) as broker:
        consumer = broker.consume([ORDERS])
        await broker.publish([outgoing(str(number).encode()) for number in range(200)])
        await settle(consumer, await take(consumer, 200), Action.DEAD)
        ids = [letter.id for letter in await patiently(lambda: broker.dead_letters("dlq_orders"))]
        assert await broker.purge_dead("dlq_orders", ids=ids[::2]) == 100
        assert await broker.replay("dlq_orders") == 100
        assert await broker.dead_letters("dlq_orders") == []
        assert await settle(consumer, await take(consumer, 100)) == []
