"""The service's own database, beside the broker's: SQLite, or PostgreSQL by its URL. Alembic keeps its tables."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import alembic.command
from alembic.config import Config
from sqlalchemy import Connection, event, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from carteiro import Depends
from examples.currency.settings import settings

DRIVERS: Final = {
    "sqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
}
MIGRATING: Final = 0x63757272656E6379
"""The number of the lock that those who would migrate a PostgreSQL take turns by: any that nobody else uses."""


def connect(url: str) -> AsyncEngine:
    """Connections to this database, as they are needed."""
    address = make_url(url)
    engine = create_async_engine(address.set(drivername=DRIVERS.get(address.drivername, address.drivername)))
    if engine.dialect.name == "sqlite":
        event.listen(engine.sync_engine, "connect", _configure)
        event.listen(engine.sync_engine, "begin", _begin)
    return engine


def _configure(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # SQLAlchemy says BEGIN, below
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))


engine = connect(settings.database)
sessions = async_sessionmaker(engine, expire_on_commit=False)


async def session() -> AsyncIterator[AsyncSession]:
    """One transaction for each message and each request, committed before the ack: what writes can be repeated."""
    async with sessions() as opened, opened.begin():
        yield opened


Session = Annotated[AsyncSession, Depends(session)]


@asynccontextmanager
async def database() -> AsyncIterator[None]:
    """Bring the tables up to date, and close the connections in the end."""
    await migrate()
    yield
    await engine.dispose()


async def migrate() -> None:
    """However many processes start at once: one does it, and the others wait and then find it done."""
    # On SQLite nobody else may write from here on, on PostgreSQL nobody else gets the lock.
    async with engine.execution_options(begin="BEGIN IMMEDIATE").begin() as connection:
        if connection.dialect.name == "postgresql":
            await connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": MIGRATING})
        await connection.run_sync(_upgrade)


def _upgrade(connection: Connection) -> None:
    config = Config(Path(__file__).with_name("alembic.ini"), attributes={"connection": connection})
    alembic.command.upgrade(config, "head")
