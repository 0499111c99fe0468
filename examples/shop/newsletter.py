"""The newsletter: a listener whose server is down. It has its own group, so that nobody else notices."""

from __future__ import annotations

from carteiro import Retry, Router, constant
from examples.shop.events import Shipped
from examples.shop.settings import settings

router = Router(prefix="orders.")


@router.subscriber("shipped", group="newsletter", retry=Retry(attempts=2, backoff=constant(0.5)))
async def invite(order: Shipped) -> None:
    if not settings.newsletter_up:
        raise ConnectionError("the newsletter's server has been down since Tuesday")
