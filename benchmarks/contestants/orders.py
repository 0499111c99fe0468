"""The message that every contestant handles, and how a worker tells its pace.

The broker's URL is in BENCH_BROKER. Each contestant's library may live in an environment of its own, so nothing here
needs more than pydantic.
"""

from __future__ import annotations

import json
import os
import time
from decimal import Decimal

from pydantic import BaseModel

TOPIC = "orders.placed"
STAMPS = "stamps"
GROUP = "bench"


class Order(BaseModel):
    id: int
    sku: str
    amount: Decimal


ORDER = Order(id=123_456, sku="abc-123", amount=Decimal("12.50"))
BODY = b'{"id":123456,"sku":"abc-123","amount":"12.50"}'


def broker() -> str:
    return os.environ["BENCH_BROKER"]


def filling() -> bool:
    """Whether what is published now is not measured, and need not wait for a disk."""
    return "BENCH_FILLING" in os.environ


def tell(**fields: object) -> None:
    """One JSON object on stdout, which the benchmark reads. Short lines: many processes may share one pipe."""
    os.write(1, json.dumps({"pid": os.getpid(), **fields}).encode() + b"\n")


class Tally:
    """Counts what is handled; at each BENCH_EVERY it tells how many, and when, on a clock that processes share.

    It tells for the process in which it was made, also from one that is forked from it: one worker is one process.
    """

    def __init__(self) -> None:
        self.handled = 0
        self._every = int(os.environ.get("BENCH_EVERY", "1000"))
        self._pid = os.getpid()

    def count(self) -> None:
        self.handled += 1
        if self.handled % self._every == 0:
            tell(pid=self._pid, handled=self.handled, at=time.monotonic())


def stamped(sent: float) -> None:
    """Tell how long a message was under way that was sent at `sent`, on a clock that processes share."""
    tell(sent=sent, delay=round(time.monotonic() - sent, 6))
