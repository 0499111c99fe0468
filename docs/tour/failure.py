from datetime import timedelta
from decimal import Decimal

from pydantic import BaseModel

from carteiro import Carteiro, Idempotency, Reject, Retry, RetryLater, exponential

app = Carteiro("shop")


class Order(BaseModel):
    id: int
    closed: bool = False
    ready: bool = True
    payment_is_down: bool = False


class PaymentDown(Exception): ...


def closed(order: Order) -> bool:
    return order.closed


def ready(order: Order) -> bool:
    return order.ready


@app.subscriber(
    "checkout",
    retry=Retry(attempts=5, backoff=exponential(1, cap=60, jitter="full"), on=(PaymentDown,)),
    timeout=30,
)
async def checkout(order: Order) -> None:
    if closed(order):
        raise Reject("the order is closed")      # straight to the dead letters
    if not ready(order):
        raise RetryLater(delay=10)               # an explicit retry, its own delay
    if order.payment_is_down:
        raise PaymentDown("no answer from the bank")


@app.subscriber("payments", idempotency=Idempotency(key="order_id", ttl=timedelta(hours=1)))
async def charge(order_id: int, amount: Decimal) -> None: ...      # a second delivery of the same order does nothing
