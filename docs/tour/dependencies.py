from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from carteiro import Carteiro, Depends

app = Carteiro("shop")


class Order(BaseModel):
    id: int
    sku: str
    amount: Decimal


class Base(DeclarativeBase): ...


class Row(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    sku: Mapped[str]
    amount: Mapped[str]


engine = create_async_engine("sqlite+aiosqlite:///orders.db")
Session = async_sessionmaker(engine)


@event.listens_for(engine.sync_engine, "connect")
def create_table(connection, _) -> None:
    connection.execute("CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, sku TEXT, amount TEXT)")


async def session() -> AsyncIterator[AsyncSession]:
    async with Session() as s, s.begin():
        yield s


@app.subscriber("orders.placed")
async def store(order: Order, session: Annotated[AsyncSession, Depends(session)]) -> None:
    session.add(Row(id=order.id, sku=order.sku, amount=str(order.amount)))
