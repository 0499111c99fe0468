from typing import Annotated

from carteiro import Carteiro, Emit, Topic

app = Carteiro("shop", brokers={"default": "sqlite:///shop.db", "events": "sqlite:///events.db"})
app.topic("stock.moved", broker="events")                # where a topic lives is said once


@app.subscriber("orders.placed")                         # from the default broker
@app.publisher("stock.moved")                            # to `events`, and safe there before the ack
async def reserve(order_id: int, audit: Annotated[Emit[str], Topic("audit", broker="events")]) -> int:
    audit(f"order {order_id} is reserved")               # or it is said where it is used
    return order_id


@app.subscriber("stock.moved")
async def count(order_id: int) -> None: ...
