"""Stock: sets units aside for an order that was placed, and puts them back when nobody pays for them."""

from __future__ import annotations

from typing import Annotated

from sqlalchemy import update

from carteiro import Emit, Header, Router, Topic
from examples.shop.db import Reservation, Session, Shelf
from examples.shop.events import Cancelled, Order, Reserved, Unpaid

router = Router()


@router.subscriber("orders.placed", group="stock")
async def reserve(
    order: Order,
    session: Session,
    reserved: Annotated[Emit[Reserved], Topic("orders.reserved")],
    cancelled: Annotated[Emit[Cancelled], Topic("orders.cancelled")],
) -> None:
    reservation = await session.get(Reservation, order.id)
    if reservation is None:  # else the order came a second time, and is answered as it was the first
        state = "reserved" if await _take(session, order.sku, order.quantity) else "refused"
        reservation = Reservation(order_id=order.id, sku=order.sku, quantity=order.quantity, state=state)
        session.add(reservation)
    if reservation.state == "refused":
        cancelled(Cancelled(**order.model_dump(), reason=f"{order.sku}: out of stock"))
    else:
        reserved(Reserved(**order.model_dump()))


@router.subscriber("dlq_orders.reserved.payment", group="stock")
@router.publisher("orders.unpaid")
async def release(order: Reserved, reason: Annotated[str, Header("dead-reason")], session: Session) -> Unpaid:
    """A dead letter queue is a topic like any other."""
    reservation = await session.get_one(Reservation, order.id)
    if reservation.state == "reserved":
        reservation.state = "released"
        await _take(session, order.sku, -order.quantity)
    return Unpaid(**order.model_dump(), reason=reason)


async def _take(session: Session, sku: str, units: int) -> bool:
    """Take from the shelf, if there is enough: one statement, so that two orders cannot take the same unit."""
    taken = update(Shelf).where(Shelf.sku == sku, Shelf.units >= units).values(units=Shelf.units - units)
    return bool((await session.execute(taken.returning(Shelf.units))).all())
