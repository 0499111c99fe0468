from fastapi import FastAPI
from pydantic import BaseModel

from carteiro import Carteiro
from carteiro.web import health

app = Carteiro("shop")


class Order(BaseModel):
    id: int
    sku: str


@app.subscriber("orders.placed")
async def reserve(order: Order) -> None: ...


api = FastAPI(lifespan=app.lifespan)        # connects and consumes with the service; workers=False only publishes
api.include_router(health(app))             # GET /health/queue, /health/live, /health/ready


@api.post("/orders", status_code=202)
async def place(order: Order) -> None:
    await app.publish("orders.placed", order)
