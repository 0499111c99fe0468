"""Payment: charges the card once the units are set aside, and tries again when the bank does not answer."""

from __future__ import annotations

from typing import Annotated

from sqlalchemy.dialects.sqlite import insert

from carteiro import Depends, Idempotency, Message, Reject, Retry, Router, exponential
from examples.shop.bank import Bank, CardRefused, bank
from examples.shop.db import Payment, Session
from examples.shop.events import Paid, Reserved
from examples.shop.settings import settings

router = Router(prefix="orders.")


@router.subscriber(
    "reserved",
    group="payment",
    retry=Retry(attempts=6, backoff=exponential(settings.backoff, cap=60)),
    idempotency=Idempotency(key="id"),
)
@router.publisher("paid")
async def charge(order: Reserved, message: Message, session: Session, bank: Annotated[Bank, Depends(bank)]) -> Paid:
    # The bank comes before the first statement: no transaction is open while it makes up its mind.
    try:
        reference = await bank.charge(order.id, order.card, message.attempt)
    except CardRefused as refused:
        raise Reject(str(refused)) from refused
    payment = insert(Payment).values(order_id=order.id, cents=int(order.amount * 100), reference=reference)
    await session.execute(payment.on_conflict_do_nothing())
    return Paid(**order.model_dump(), reference=reference)
