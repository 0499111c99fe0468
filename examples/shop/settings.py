"""What can be set from outside: `SHOP_FAILURE_RATE=0 python -m examples.shop`."""

from __future__ import annotations

import os

from pydantic import BaseModel


class Settings(BaseModel, frozen=True):
    """Each comes from the environment variable of its name, in capitals, after `SHOP_`. Times are in seconds.

    The shop keeps its files where it is started: `carteiro.db`, the broker's, and `shop.db`, its own.
    """

    seed: int = 7
    """Decides which charges fail: the same orders meet the same bank again."""
    failure_rate: float = 0.05
    """How often the bank does not answer."""
    backoff: float = 0.05
    """The longest wait before a charge's second attempt; it doubles with each one after."""
    lease: float = 30.0
    """After so long, what a killed process was doing is done by others."""
    newsletter_up: bool = False
    """The newsletter's server is down, unless someone mends it."""

    @classmethod
    def from_environment(cls) -> Settings:
        names = {name: f"SHOP_{name.upper()}" for name in cls.model_fields}
        return cls.model_validate({name: os.environ[key] for name, key in names.items() if key in os.environ})


settings = Settings.from_environment()
