"""The shop over HTTP: an order is answered at once, and followed afterwards."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from examples.shop.app import app
from examples.shop.catalogue import CATALOGUE
from examples.shop.db import Entry, database, session
from examples.shop.desk import STAGES
from examples.shop.events import Card, Name, Order, Quantity, Sku

routes = APIRouter()
Session = Annotated[AsyncSession, Depends(session)]  # the same dependency as the handlers', by FastAPI's own word
PAGE = Path(__file__).with_name("page.html")


class Basket(BaseModel):
    """What a customer sends."""

    customer: Name
    sku: Sku
    quantity: Quantity = 1
    card: Card = "tok_visa"


@routes.post("/orders", status_code=202)
async def place(basket: Basket, response: Response) -> dict[str, str]:
    """Returns once the broker has the order safe; all else happens by events."""
    amount = CATALOGUE[basket.sku].price * basket.quantity
    order = Order(id=secrets.token_hex(6), amount=amount, **basket.model_dump())
    await app.publish("orders.placed", order)
    response.headers["location"] = f"/orders/{order.id}"
    return {"id": order.id}


@routes.get("/orders/{order_id}")
async def show(order_id: str, session: Session) -> dict[str, Any]:
    """How the order stands and what has happened to it, the earliest first."""
    book = await session.scalars(select(Entry).where(Entry.order_id == order_id).order_by(Entry.at, Entry.rank))
    history = list(book)
    if not history:
        detail = f"no order `{order_id}` is in the book; one that was placed just now will be in a moment"
        raise HTTPException(404, detail, headers={"retry-after": "1"})
    return {
        "id": order_id,
        "status": max(history, key=lambda entry: entry.rank).stage,
        "history": [{"stage": entry.stage, "at": entry.at, "detail": entry.detail} for entry in history],
    }


@routes.get("/orders")
async def count(session: Session, latest: int = 12) -> dict[str, Any]:
    """How many orders stand at each stage, and the latest of them."""
    rank = func.max(Entry.rank).label("rank")
    orders = select(Entry.order_id, rank, func.min(Entry.at).label("at")).group_by(Entry.order_id).subquery()
    standing = await session.execute(select(orders.c.rank, func.count()).group_by(orders.c.rank))
    counts: dict[int, int] = dict(standing.tuples().all())
    recent = await session.execute(select(orders).order_by(orders.c.at.desc()).limit(latest))
    return {
        "counts": {stage: counts.get(rank, 0) for rank, stage in enumerate(STAGES)},
        "latest": [{"id": one.order_id, "status": STAGES[one.rank], "at": one.at} for one in recent],
    }


@routes.get("/", include_in_schema=False)
async def page() -> FileResponse:
    return FileResponse(PAGE)


def service(only: Sequence[str] = ()) -> FastAPI:
    """Web API and workers in one process; `only` these groups work, all if there are none."""

    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncIterator[None]:
        async with database(), app.lifespan(api, only=only):
            yield

    api = FastAPI(title="The shop", lifespan=lifespan)
    api.include_router(routes)
    return api
