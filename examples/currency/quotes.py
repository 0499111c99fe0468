"""The quotes that are stored: kept once each, and found again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from examples.currency.models import Quote
from examples.currency.source import Quoted


async def keep(session: AsyncSession, quotes: Sequence[Quoted], now: datetime) -> None:
    """Those that are there already are confirmed, and no others are made of them."""
    on_postgresql = session.get_bind().dialect.name == "postgresql"
    insert = (postgresql.insert if on_postgresql else sqlite.insert)(Quote)
    confirm = insert.on_conflict_do_update(
        index_elements=[Quote.code, Quote.codein, Quote.timestamp], set_={"updated_at": insert.excluded.updated_at}
    )
    await session.execute(confirm, [{**one.model_dump(), "created_at": now, "updated_at": now} for one in quotes])


async def last(session: AsyncSession, pair: str) -> Quote | None:
    found = await history(session, pair, limit=1)
    return found[0] if found else None


async def history(
    session: AsyncSession, pair: str, *, limit: int, since: datetime | None = None, until: datetime | None = None
) -> Sequence[Quote]:
    """The newest first, from `since` on and before `until`."""
    code, codein = pair.split("-")
    wanted = select(Quote).where(Quote.code == code, Quote.codein == codein)
    if since is not None:
        wanted = wanted.where(Quote.timestamp >= since.timestamp())
    if until is not None:
        wanted = wanted.where(Quote.timestamp < until.timestamp())
    return (await session.scalars(wanted.order_by(Quote.timestamp.desc()).limit(limit))).all()
