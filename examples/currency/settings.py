"""What can be set from outside: `CURRENCY_PAIRS=USD-BRL,GBP-BRL python -m examples.currency`."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field


def _listed(pairs: object) -> object:
    return pairs.split(",") if isinstance(pairs, str) else pairs


Pair = Annotated[str, Field(pattern="^[A-Z]{2,10}-[A-Z]{2,10}$")]
Pairs = Annotated[tuple[Pair, ...], BeforeValidator(_listed), Field(min_length=1)]


class Settings(BaseModel, frozen=True):
    """Each comes from the environment variable of its name, in capitals, after `CURRENCY_`. Times are in seconds."""

    database: str = "sqlite:///currency.db"
    """Or `postgresql://user:password@host/name`."""
    source: str = "https://economia.awesomeapi.com.br"
    pairs: Pairs = ("USD-BRL", "EUR-BRL", "BTC-BRL")
    """The first is the one that is served to those who name none."""
    every: float = 60.0
    """How often the quotes are fetched."""
    rate: str = "30/m"
    """How often the source is asked at most, whoever wants it and however many workers there are."""
    patience: float = 5.0
    """How long the source may take for its answer."""
    cooldown: float = 30.0
    """How long a source that failed again and again is left alone."""
    stale_after: float = 150.0
    """A quote that the source has not confirmed for so long is stale: it was asked twice since, in vain."""
    latest_timeout: float = 15.0
    """How long `GET /currency/latest` waits for its fetch."""

    @classmethod
    def from_environment(cls) -> Settings:
        names = {name: f"CURRENCY_{name.upper()}" for name in cls.model_fields}
        return cls.model_validate({name: os.environ[key] for name, key in names.items() if key in os.environ})


settings = Settings.from_environment()
