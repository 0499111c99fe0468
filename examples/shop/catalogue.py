"""What the shop sells."""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple


class Article(NamedTuple):
    """`units` is how many are on the shelf when the shop is opened for the first time."""

    name: str
    price: Decimal
    units: int


CATALOGUE = {
    "postcard": Article("Postcard, Minas Gerais", Decimal("1.50"), 50_000),
    "stamps": Article("Stamps, a sheet of ten", Decimal("12.00"), 50_000),
    "envelopes": Article("Envelopes, airmail, 25", Decimal("4.20"), 50_000),
    "wax": Article("Sealing wax, red", Decimal("7.90"), 50_000),
    "pen": Article("Fountain pen, numbered edition", Decimal("89.00"), 20),
    "quill": Article("Quill, goose", Decimal("15.00"), 0),
}
