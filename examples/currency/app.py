"""The app: one task, and when it is done. `carteiro run examples.currency.app:app` is a worker more."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from carteiro import Carteiro, Depends, Retry, every, exponential
from examples.currency.db import Session, database
from examples.currency.quotes import keep
from examples.currency.settings import settings
from examples.currency.source import Source, SourceCutOff, source

app = Carteiro("currency", lifespan=lambda app: database())


@app.task(
    retry=Retry(attempts=3, backoff=exponential(2), not_on=(SourceCutOff,)),
    timeout=30,
    expires="1m",  # after an hour without a worker one fetch is enough
    rate_limit=settings.rate,
    unique=True,  # who wants it while it is under way gets this one
    result_ttl="1h",
)
async def refresh(source: Annotated[Source, Depends(source)], session: Session) -> None:
    """Fetch every pair and keep what is new. It may be repeated: equal quotes are one."""
    quotes = await source.quotes(settings.pairs)  # before the first statement: no transaction waits for the source
    await keep(session, quotes, now())


app.schedule("refresh", every(seconds=settings.every), refresh.s(), overlap="skip")


def now() -> datetime:
    """By the app's clock, which tests hold."""
    return datetime.fromtimestamp(app.clock.time(), UTC)
