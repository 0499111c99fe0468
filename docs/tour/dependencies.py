from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from carteiro import Carteiro, Depends


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


@asynccontextmanager
async def database(app: Carteiro) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()


app = Carteiro("shop", lifespan=database)            # there while handlers run


async def session() -> AsyncIterator[AsyncSession]:
    async with Session() as s, s.begin():
        yield s


@app.subscriber("orders.placed")
async def store(order: Order, session: Annotated[AsyncSession, Depends(session)]) -> None:
    session.add(Row(id=order.id, sku=order.sku, amount=str(order.amount)))
