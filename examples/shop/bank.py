"""A bank that can be relied on to fail: for some cards always, for others at times, and each time in the same way."""

from __future__ import annotations

import hashlib

from examples.shop.settings import settings


class CardRefused(Exception):
    """It will never be paid with this card."""


class BankDown(Exception):
    """The bank did not answer. Later it may."""


class Bank:
    """Charges twice for nothing: an order's charge has the same reference each time."""

    def __init__(self, seed: int, failure_rate: float) -> None:
        self._seed = seed
        self._failure_rates = {"tok_offline": 1.0, "tok_flaky": max(0.5, failure_rate)}
        self._failure_rate = failure_rate

    async def charge(self, order_id: str, card: str, attempt: int) -> str:
        """The charge's reference; raises CardRefused or BankDown."""
        if card == "tok_refused":
            raise CardRefused("the card was refused")
        if self._chance(f"{order_id}/{attempt}") < self._failure_rates.get(card, self._failure_rate):
            raise BankDown("the bank does not answer")
        return f"bank-{order_id}"

    def _chance(self, what: str) -> float:
        """Between 0 and 1, as by chance, and the same each time."""
        digest = hashlib.blake2b(f"{self._seed}/{what}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64


def bank() -> Bank:
    return Bank(settings.seed, settings.failure_rate)
