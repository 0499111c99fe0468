"""What a cancelled fetch leaves to the next one, while most of its lease is left."""

from __future__ import annotations

from carteiro.message import NO_HEADERS, Delivery, Message, Subscription
from carteiro.ports.leftover import Leftover

ORDERS = Subscription("orders", "shop", lease=30.0)
NEWS = Subscription("news", "shop", lease=60.0)


def delivery(subscription: Subscription, id: str) -> Delivery:
    message = Message(id, subscription.topic, b"", None, NO_HEADERS, id, 0.0, 1)
    return Delivery(subscription, message, id)


def test_what_is_left_is_taken_in_order_as_far_as_there_is_room():
    orders, news = [delivery(ORDERS, id) for id in "abc"], [delivery(NEWS, id) for id in "de"]
    leftover = Leftover()
    leftover.add([*orders, *news], 100.0)
    assert leftover.take({ORDERS: 2, NEWS: 0}, 100.0) == orders[:2]
    assert leftover.take({ORDERS: 2, NEWS: 1}, 100.0) == [orders[2], news[0]]
    assert leftover
    assert leftover.take_all() == [news[1]]
    assert not leftover


def test_what_has_lost_a_third_of_its_lease_is_handed_back_and_not_out():
    orders, news = [delivery(ORDERS, "a")], [delivery(NEWS, "b")]
    leftover = Leftover()
    leftover.add([*orders, *news], 100.0)
    assert leftover.take_stale(109.0) == []
    assert leftover.take({ORDERS: 1, NEWS: 1}, 111.0) == news
    assert leftover.take_stale(111.0) == orders
    assert not leftover
