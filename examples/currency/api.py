"""The service over HTTP: the last quote, a fresh one, and those before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import AwareDatetime
from sqlalchemy.ext.asyncio import AsyncSession

from carteiro import BrokerUnavailable, ResultTimeout, TaskExpired
from carteiro.web import health
from examples.currency import db, quotes
from examples.currency.app import app, now, refresh
from examples.currency.schemas import History, LastQuote, Problem, Quote
from examples.currency.settings import settings
from examples.currency.source import SourceCutOff, SourceFailed

PAGE = Path(__file__).with_name("page.html")
Session = Annotated[AsyncSession, Depends(db.session)]  # the task's dependency, by FastAPI's own word


def _header(name: str, description: str) -> dict[str, Any]:
    return {name: {"description": description, "schema": {"type": "integer"}}}


def _problem(description: str, example: str, headers: dict[str, Any] | None = None) -> dict[str, Any]:
    """How OpenAPI tells of an answer that is none."""
    content = {"application/json": {"example": {"detail": example}}}
    return {"model": Problem, "description": description, "content": content, "headers": headers or {}}


AGE = _header("Age", "Seconds since the source confirmed the quote")
WAIT = _header("Retry-After", "Seconds after which it is worth another try")
UNKNOWN = _problem("A pair that is not followed", "`XYZ-BRL` is not followed: there are USD-BRL, EUR-BRL, BTC-BRL")
NOTHING_YET = _problem("There is no quote of the pair yet", "no quote of USD-BRL has been fetched yet", WAIT)
IN_VAIN = _problem("The source was asked in vain", "the source did not answer within 5 s")
NOT_ASKED = _problem(
    "The source was not asked: it has failed so often that it is left alone, or no worker is up to ask it",
    "the source answered 500; after 5 failures it is left alone for 30 s",
    WAIT,
)

routes = APIRouter(prefix="/currency", tags=["currency"])


async def followed(
    pair: Annotated[str, Query(description="A currency, and the one in which its price is", examples=["EUR-BRL"])] = (
        settings.pairs[0]
    ),
) -> str:
    """Raises HTTPException for a pair that is not."""
    if (found := pair.upper()) not in settings.pairs:
        raise HTTPException(404, f"`{pair}` is not followed: there are {', '.join(settings.pairs)}")
    return found


Pair = Annotated[str, Depends(followed)]


@routes.get("/", responses={200: {"headers": AGE}, 404: UNKNOWN, 503: NOTHING_YET})
async def last(pair: Pair, session: Session, response: Response) -> LastQuote:
    """The last quote that is known. While the source is away it is the one from before, and says that it is stale."""
    found = await quotes.last(session, pair)
    if found is None:
        raise HTTPException(503, f"no quote of {pair} has been fetched yet", {"retry-after": "5"})
    quote = LastQuote.of(found, now())
    response.headers["age"] = str(quote.age)
    return quote


@routes.get("/latest", responses={200: {"headers": AGE}, 404: UNKNOWN, 502: IN_VAIN, 503: NOT_ASKED})
async def latest(pair: Pair, session: Session, response: Response) -> LastQuote:
    """Fetches now, stores, and answers. All who ask at the same time are answered by one fetch."""
    fetch = await refresh.apply_async()
    await fetch.get(settings.latest_timeout)
    return await last(pair, session, response)


@routes.get("/history", responses={404: UNKNOWN})
async def history(
    pair: Pair,
    session: Session,
    since: Annotated[
        AwareDatetime | None,
        Query(alias="from", description="The earliest, included", examples=["2026-11-22T00:00:00Z"]),
    ] = None,
    until: Annotated[
        AwareDatetime | None,
        Query(alias="to", description="The latest, not included", examples=["2026-11-23T00:00:00-03:00"]),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1500, description="How many a page has at most")] = 100,
) -> History:
    """The quotes of a pair, by the time at which the source made them, the newest first; `next` has the older ones."""
    found = await quotes.history(session, pair, limit=limit + 1, since=since, until=until)
    following = None
    if len(found) > limit:
        query: dict[str, Any] = {"pair": pair, "limit": limit, "to": found[limit - 1].timestamp}
        if since is not None:
            query["from"] = since.isoformat()
        following = f"{routes.url_path_for('history')}?{urlencode(query)}"
    return History(items=[Quote.model_validate(one) for one in found[:limit]], next=following)


@routes.get("/pairs", responses={200: {"content": {"application/json": {"example": settings.pairs}}}})
async def pairs() -> tuple[str, ...]:
    """The pairs that are followed; the first is served to those who name none."""
    return settings.pairs


async def page() -> FileResponse:
    return FileResponse(PAGE)


async def _in_vain(request: Request, error: Any) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 502)


async def _not_asked(request: Request, error: Any) -> JSONResponse:
    again = getattr(error, "retry_after", None) or 5
    return JSONResponse({"detail": str(error)}, 503, headers={"retry-after": f"{again:.0f}"})


def service(*, workers: bool = True) -> FastAPI:
    """The web service; with `workers`, the same process fetches, and fires the schedule."""

    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncIterator[None]:
        # The worker opens the database for its handlers; without one it is opened here.
        async with nullcontext() if workers else db.database(), app.lifespan(api, workers=workers):
            await refresh.apply_async()  # a service that is new does not wait for its first minute
            yield

    about = f"Quotes of {', '.join(settings.pairs)}, each minute."
    api = FastAPI(title="Currency", version="1.0", description=about, lifespan=lifespan)
    api.include_router(routes)
    api.include_router(health(app))
    api.add_api_route("/", page, include_in_schema=False)
    api.add_exception_handler(SourceFailed, _in_vain)
    for kind in (SourceCutOff, BrokerUnavailable, ResultTimeout, TaskExpired):
        api.add_exception_handler(kind, _not_asked)
    return api
