"""Invoice: writes the next number for each order that was paid, and the same number if it is asked twice."""

from __future__ import annotations

from sqlalchemy.dialects.sqlite import insert

from carteiro import Router
from examples.shop.db import Invoice, Session
from examples.shop.events import Invoiced, Paid

router = Router(prefix="orders.")


@router.subscriber("paid", group="invoice")
@router.publisher("invoiced")
async def write(order: Paid, session: Session) -> Invoiced:
    invoice = insert(Invoice).values(order_id=order.id)
    # An update that changes nothing, since only what was written is returned: it gives the number of the first time.
    same = invoice.on_conflict_do_update(index_elements=["order_id"], set_={"order_id": order.id})
    number = (await session.scalars(same.returning(Invoice.number))).one()
    return Invoiced(**order.model_dump(), invoice=number)
