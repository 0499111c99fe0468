from typing import Annotated

from pydantic import BaseModel

from carteiro import Carteiro, Emit, Header, Topic
from carteiro.backends.rabbitmq import RabbitBinding, RabbitExchange, RabbitQueue

app = Carteiro("shop")                                      # with CARTEIRO_BROKER=amqp://localhost

logs = RabbitExchange("logs", type="direct")
documents = RabbitExchange("documents", type="headers")
archive = RabbitExchange("archive", type="fanout", bind=RabbitBinding(logs, "error"))


class Order(BaseModel):
    id: int
    sku: str


@app.subscriber(RabbitQueue("errors", bind=RabbitExchange("logs", type="direct"), routing_key="error"))
async def error(text: str) -> str:
    return f"error: {text}"


@app.subscriber(RabbitQueue("br-users", bind=RabbitExchange("topics", type="topic"), routing_key="user.*.br"))
async def user(name: str, key: Annotated[str, Header("routing-key")]) -> str:
    return f"{key}: {name}"


@app.subscriber(RabbitExchange("broadcasts", type="fanout"), group=None)     # a queue of its own for each process
async def everyone(text: str) -> str:
    return f"heard {text}"


@app.subscriber(RabbitQueue("reports", bind=RabbitBinding(documents, arguments={"x-match": "any", "kind": "report"})))
async def file(title: str) -> str:
    return f"filed {title}"


@app.subscriber(RabbitQueue("kept", bind=archive, type="stream", ttl="30d"))  # each group reads it from where it is
async def keep(text: str) -> str:
    return f"kept {text}"


@app.subscriber(RabbitQueue("jobs", type="classic", max_priority=10))        # any client's, with the property priority
@app.publisher(RabbitQueue("done"))
async def work(order: Order, log: Annotated[Emit[str], Topic(logs.to("info"))]) -> Order:
    log(f"order {order.id}")
    return order


async def announce() -> None:
    async with app:
        await app.publish(RabbitExchange("broadcasts", type="fanout"), "everyone")
        await app.publish(logs.to("error"), "disk full")
