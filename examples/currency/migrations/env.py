"""What Alembic runs: on the connection that the service hands over, or on one of its own from the command line."""

from __future__ import annotations

import asyncio

from alembic import context
from sqlalchemy import Connection

from examples.currency.db import engine
from examples.currency.models import Base


def migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        transactional_ddl=True,  # SQLite's too, since db.py says BEGIN
        render_as_batch=True,  # SQLite changes few things of a table that is there
    )
    with context.begin_transaction():
        context.run_migrations()


async def connect() -> None:
    async with engine.begin() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


if (given := context.config.attributes.get("connection")) is not None:
    migrate(given)
else:
    asyncio.run(connect())
