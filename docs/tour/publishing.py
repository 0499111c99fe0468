import asyncio
from datetime import timedelta
from typing import Annotated

from pydantic import BaseModel

from carteiro import Carteiro, Emit, Router, Topic

app = Carteiro("shop")
router = Router(prefix="orders.")


class Order(BaseModel):
    id: int
    sku: str
    paid: bool = True


class Reserved(BaseModel):
    order_id: int
    sku: str


@app.subscriber("orders.placed", group="stock")          # each group gets every message once;
@app.publisher("stock.reserved")                         # the workers of one group share them
async def reserve(order: Order) -> Reserved:             # what it returns is published, atomically with the ack
    return Reserved(order_id=order.id, sku=order.sku)


@app.subscriber("orders.placed", group="payment")
async def pay(order: Order, stock: Annotated[Emit[Reserved], Topic("stock.released")]) -> None:
    if not order.paid:
        stock(Reserved(order_id=order.id, sku=order.sku))   # emitted only if the handler succeeds


@router.subscriber("cancelled", group="stock")           # orders.cancelled and orders.expired
@router.subscriber("expired", group="stock")
@app.publisher("stock.released")
@app.publisher("customers.told")
async def release(order: Order) -> Reserved:
    return Reserved(order_id=order.id, sku=order.sku)


@app.subscriber("user_channel", type="send_audio")       # one queue, many kinds of message
async def send_audio(user_id: int, content: str) -> str:
    return f"{user_id} hears {content}"


@app.subscriber("user_channel", type="send_text")
async def send_text(user_id: int, content: str) -> str:
    return f"{user_id} reads {content}"


@app.subscriber("prices.changed", group=None)            # a broadcast: every running process gets its own copy
async def forget_prices(sku: str) -> None: ...


app.include(router)

order = Order(id=1, sku="A-7")
orders = [Order(id=number, sku="A-7") for number in range(2, 5)]


async def main() -> None:
    async with app:
        tenant, later = {"x-tenant": "br"}, timedelta(minutes=5)
        await app.publish("orders.placed", order, key=str(order.id), headers=tenant, delay=later)
        await app.publish_many("orders.placed", orders)


if __name__ == "__main__":
    asyncio.run(main())
    app.publish_sync("orders.cancelled", order)          # code that has no event loop
