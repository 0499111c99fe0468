from typing import Annotated, Any

from pydantic import BaseModel

from carteiro import Carteiro, Emit, Message, Topic
from carteiro.backends.redis import RedisChannel, RedisList, RedisStream

app = Carteiro("shop")                                      # with CARTEIRO_BROKER=redis://localhost


class Order(BaseModel):
    id: int
    sku: str


@app.subscriber(RedisChannel("test"))                       # plain PUBLISH from any client
async def hear(text: str) -> str:
    return f"heard {text}"


@app.subscriber(RedisChannel("news.*", pattern=True))       # many channels: the header says which
async def follow(text: str, message: Message) -> str:
    return f"{message.headers['channel']}: {text}"


@app.subscriber(RedisList("jobs"))                          # any client's RPUSH; at least once, not LPOP
@app.publisher(RedisStream("orders.done", maxlen=10_000))   # for any client's XREAD
async def work(order: Order, log: Annotated[Emit[str], Topic(RedisList("log"))]) -> Order:
    log(f"order {order.id}")                                # both in one step with the ack
    return order


@app.subscriber(RedisStream("orders", group="billing"))     # someone else's stream, and group
async def bill(fields: dict[str, Any]) -> str:
    return f"billed {fields['id']}"
