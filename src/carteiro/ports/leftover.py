"""What a consumer has claimed and nobody has taken: a fetch that was cancelled leaves it to the next one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from carteiro.message import Delivery, Subscription

_FRESH: Final = 2 / 3


class Leftover:
    """Deliveries, in the order claimed. `now` is seconds by one clock of the consumer's choice.

    Whoever gets one counts its lease from then, so what has lost a third of it is not handed out any more.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[float, Delivery]] = []  # until when it is fresh

    def __bool__(self) -> bool:
        return bool(self._kept)

    def add(self, deliveries: Sequence[Delivery], now: float) -> None:
        """What was claimed just now."""
        self._kept += ((now + delivery.subscription.lease * (1 - _FRESH), delivery) for delivery in deliveries)

    def take(self, room: Mapping[Subscription, int], now: float) -> list[Delivery]:
        """What is fresh and has room."""
        left = dict(room)
        taken: list[Delivery] = []
        kept: list[tuple[float, Delivery]] = []
        for until, delivery in self._kept:
            if until > now and left.get(delivery.subscription, 0) > 0:
                left[delivery.subscription] -= 1
                taken.append(delivery)
            else:
                kept.append((until, delivery))
        self._kept = kept
        return taken

    def take_stale(self, now: float) -> list[Delivery]:
        """What is fresh no more: to be handed back."""
        stale = [delivery for until, delivery in self._kept if until <= now]
        self._kept = [one for one in self._kept if one[0] > now]
        return stale

    def take_all(self) -> list[Delivery]:
        deliveries = [delivery for _, delivery in self._kept]
        self._kept.clear()
        return deliveries
