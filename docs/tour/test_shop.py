from pydantic import BaseModel

from carteiro import Carteiro, Retry
from carteiro.testing import TestApp

app = Carteiro("shop")


class Order(BaseModel):
    id: int
    sku: str


class Reserved(BaseModel):
    order_id: int


class PaymentDown(Exception): ...


@app.subscriber("greetings")
async def greet(message: str) -> str:
    return f"hello, {message}"


payments: list[Order] = []


@app.subscriber("checkout", retry=Retry(attempts=5, on=(PaymentDown,)))
@app.publisher("stock.reserved")
async def checkout(order: Order) -> Reserved:
    payments.append(order)
    if len(payments) < 3:
        raise PaymentDown
    return Reserved(order_id=order.id)


order = Order(id=1, sku="A-7")


async def test_unit():
    assert await greet("Ana") == "hello, Ana"            # a handler is still the function it was


async def test_flow():
    async with TestApp(app) as t:                        # the real engine, an in-memory broker, a clock you hold
        assert await t.request("greetings", "Ana") == "hello, Ana"
        await t.publish("checkout", order)
        await t.idle()                                   # until nothing is left to do now
        await t.advance(hours=24)                        # retries, delays and schedules fire in order, at once
        assert t.published("stock.reserved") == [Reserved(order_id=1)]
        assert t.dead("checkout") == []
        t.crash_at(checkout, "before_ack")               # the worker dies there; what then?
        await t.publish("checkout", order)
        await t.advance(minutes=1)
        assert t.crashes == 1
        assert t.published("stock.reserved") == [Reserved(order_id=1)] * 2
