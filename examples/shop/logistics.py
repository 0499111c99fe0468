"""Logistics: ships what was paid, at the same time as its invoice is written."""

from __future__ import annotations

from zlib import crc32

from sqlalchemy.dialects.sqlite import insert

from carteiro import Router
from examples.shop.db import Session, Shipment
from examples.shop.events import Paid, Shipped

router = Router(prefix="orders.")


@router.subscriber("paid", group="logistics")
@router.publisher("shipped")
async def ship(order: Paid, session: Session) -> Shipped:
    tracking = f"BR{crc32(order.id.encode()):010d}"
    await session.execute(insert(Shipment).values(order_id=order.id, tracking=tracking).on_conflict_do_nothing())
    return Shipped(**order.model_dump(), tracking=tracking)
