"""The app: who listens. `carteiro run examples.shop.app:app` runs more of it in a process of its own."""

from __future__ import annotations

from carteiro import Carteiro
from examples.shop import desk, invoice, logistics, newsletter, payment, stock
from examples.shop.settings import settings

app = Carteiro("shop", lease=settings.lease)
for department in (stock, payment, invoice, logistics, desk, newsletter):
    app.include(department.router)
