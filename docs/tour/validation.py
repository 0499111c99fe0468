from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel

from carteiro import Body, Carteiro, Header, Logger, Message, Path

app = Carteiro("shop")


class Order(BaseModel):                     # pydantic model, msgspec.Struct, dataclass, TypedDict or plain type
    id: int
    sku: str
    amount: Decimal


@app.subscriber("orders.placed")
async def reserve(order: Order) -> None: ...            # one parameter: the whole body


@app.subscriber("audit")
async def audit(trace_id: int, order: Order) -> None: ...   # several: fields of the body, by name


@app.subscriber("logs.{level}")                         # one word captured; `*` one word, `#` any number
async def log(
    level: Annotated[str, Path()],
    tenant: Annotated[str, Header("x-tenant")],
    text: Annotated[str, Body()],
    message: Message,                                   # id, topic, key, headers, attempt, correlation_id, published_at
    logger: Logger,
) -> None:
    logger.warning("%s of %s, at %s: %s", level, tenant, message.published_at, text)
