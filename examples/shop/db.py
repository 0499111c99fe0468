"""The shop's own database, beside the broker's: a table for each who writes, and the session they write with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from sqlalchemy import Connection, event
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from carteiro import Depends
from examples.shop.catalogue import CATALOGUE

# One connection: SQLite has one writer at a time, and a queue in the process is shorter than one for the file's lock.
engine = create_async_engine("sqlite+aiosqlite:///shop.db", pool_size=1, max_overflow=0)
sessions = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    pass


class Shelf(Base):
    __tablename__ = "shelf"
    sku: Mapped[str] = mapped_column(primary_key=True)
    units: Mapped[int]


class Reservation(Base):
    """What stock decided: `state` is `reserved`, `refused`, or `released` when the payment came to nothing."""

    __tablename__ = "reservation"
    order_id: Mapped[str] = mapped_column(primary_key=True)
    sku: Mapped[str]
    quantity: Mapped[int]
    state: Mapped[str]


class Payment(Base):
    __tablename__ = "payment"
    order_id: Mapped[str] = mapped_column(primary_key=True)
    cents: Mapped[int]
    reference: Mapped[str]


class Invoice(Base):
    __tablename__ = "invoice"
    number: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[str] = mapped_column(unique=True)


class Shipment(Base):
    __tablename__ = "shipment"
    order_id: Mapped[str] = mapped_column(primary_key=True)
    tracking: Mapped[str]


class Entry(Base):
    """A line of the order book. `at` is when the event was published, in seconds since the epoch."""

    __tablename__ = "book"
    order_id: Mapped[str] = mapped_column(primary_key=True)
    stage: Mapped[str] = mapped_column(primary_key=True)
    rank: Mapped[int]
    at: Mapped[float] = mapped_column(index=True)
    detail: Mapped[str]


async def session() -> AsyncIterator[AsyncSession]:
    """One transaction for each message. It is committed before the ack: a crash between repeats the message, so that
    all who write can be repeated."""
    async with sessions() as opened, opened.begin():
        yield opened


Session = Annotated[AsyncSession, Depends(session)]


@asynccontextmanager
async def database() -> AsyncIterator[None]:
    """Make the tables, fill the shelves, and close the file in the end."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        shelves = [{"sku": sku, "units": article.units} for sku, article in CATALOGUE.items()]
        await connection.execute(insert(Shelf).on_conflict_do_nothing(), shelves)
    yield
    await engine.dispose()


@event.listens_for(engine.sync_engine, "connect")
def _configure(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # SQLAlchemy says BEGIN, below
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000"):
        connection.execute(f"PRAGMA {pragma}").close()


@event.listens_for(engine.sync_engine, "begin")
def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")  # a reader that turns writer can meet another one, and would fail
