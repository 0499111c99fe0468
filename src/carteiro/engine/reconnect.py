"""How long to wait before the broker is tried again."""

from __future__ import annotations

import random
from typing import Final

FIRST: Final = 0.1
LONGEST: Final = 10.0


def reconnect_wait(tries: int) -> float:
    """Seconds before the next try: doubled from FIRST to LONGEST, with jitter: workers do not return together."""
    return min(LONGEST, FIRST * 2.0 ** min(tries, 10)) * random.uniform(0.5, 1.0)
