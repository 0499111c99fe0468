"""What happens to an order. Each event is the order, and what has become of it; its topic is `orders.<event>`."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field
from pydantic_core import PydanticCustomError

from examples.shop.catalogue import CATALOGUE


def _known(sku: str) -> str:
    if sku not in CATALOGUE:
        raise PydanticCustomError("unknown_sku", "there is no article of this name")
    return sku


Name = Annotated[str, Field(min_length=1, max_length=80)]
Sku = Annotated[str, AfterValidator(_known)]
Quantity = Annotated[int, Field(gt=0, le=1000, strict=True)]
Card = Annotated[str, Field(pattern="^tok_[a-z]+$")]


class Order(BaseModel, frozen=True):
    """`orders.placed`. `card` is the bank's token for one; `amount` the price of it all."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,40}$")]
    customer: Name
    sku: Sku
    quantity: Quantity
    amount: Annotated[Decimal, Field(gt=0, decimal_places=2)]
    card: Card


class Reserved(Order, frozen=True):
    """`orders.reserved`: its units are set aside."""


class Cancelled(Order, frozen=True):
    """`orders.cancelled`: it ends here."""

    reason: str


class Paid(Order, frozen=True):
    """`orders.paid`."""

    reference: str


class Unpaid(Order, frozen=True):
    """`orders.unpaid`: the payment is a dead letter, and the units are back on the shelf."""

    reason: str


class Invoiced(Order, frozen=True):
    """`orders.invoiced`."""

    invoice: int


class Shipped(Order, frozen=True):
    """`orders.shipped`: it ends here, as it should."""

    tracking: str
