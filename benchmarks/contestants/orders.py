"""The message that every contestant handles, and how a worker tells its pace."""

from __future__ import annotations

import json
import os
import time
from decimal import Decimal

from pydantic import BaseModel

FILE_VARIABLE = "BENCH_FILE"
TOPIC = "orders.placed"
GROUP = "bench"


class Order(BaseModel):
    id: int
    sku: str
    amount: Decimal


ORDER = Order(id=123_456, sku="abc-123", amount=Decimal("12.50"))
BODY = b'{"id":123456,"sku":"abc-123","amount":"12.50"}'


def tell(**fields: object) -> None:
    """One JSON object on stdout, which the benchmark reads. Short lines: many processes may share one pipe."""
    os.write(1, json.dumps({"pid": os.getpid(), **fields}).encode() + b"\n")


class Tally:
    """Counts what is handled; at each `every` it tells how many, when (on a shared clock), and its CPU time."""

    def __init__(self, every: int) -> None:
        self.handled = 0
        self._every = every
        self._next = every

    def count(self) -> None:
        self.handled += 1
        if self.handled == self._next:
            self._next += self._every
            tell(handled=self.handled, at=time.monotonic(), cpu=time.process_time())


class Delays:
    """How long each message was under way, told once there are so many."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._delays: list[float] = []

    def note(self, sent: float) -> None:
        self._delays.append(time.monotonic() - sent)
        if len(self._delays) == self._count:
            tell(delays=[round(delay, 6) for delay in self._delays])
