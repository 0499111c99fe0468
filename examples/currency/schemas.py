"""What is answered. Money is decimal, and text in JSON, so that no client makes floats of it unasked."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer

from examples.currency import models
from examples.currency.settings import settings

Money = Annotated[Decimal, PlainSerializer(lambda value: f"{value:f}", return_type=str, when_used="json")]
"""As people write it: 0.00000001, and not 1E-8."""

QUOTE: dict[str, Any] = {
    "id": 4711,
    "code": "USD",
    "codein": "BRL",
    "name": "Dólar Americano/Real Brasileiro",
    "high": "5.4338",
    "low": "5.3765",
    "bid": "5.4279",
    "ask": "5.4285",
    "timestamp": 1795353612,
    "create_date": "2026-11-22T13:20:12Z",
    "created_at": "2026-11-22T13:20:31.204117Z",
    "updated_at": "2026-11-22T13:21:31.198220Z",
}


class Quote(BaseModel):
    """What the source said of a pair at a time."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [QUOTE]})

    id: int
    code: Annotated[str, Field(description="The currency that is bought and sold")]
    codein: Annotated[str, Field(description="The currency in which its price is")]
    name: str
    high: Annotated[Money, Field(description="The day's highest bid, so far")]
    low: Annotated[Money, Field(description="The day's lowest bid, so far")]
    bid: Annotated[Money, Field(description="For what one can sell it")]
    ask: Annotated[Money, Field(description="For what one can buy it")]
    timestamp: Annotated[int, Field(description="When the source made it, in seconds since the epoch")]
    create_date: Annotated[AwareDatetime, Field(description="The date that the source gives it")]
    created_at: Annotated[AwareDatetime, Field(description="When it was fetched first")]
    updated_at: Annotated[AwareDatetime, Field(description="When it was fetched last: the source said the same")]


class LastQuote(Quote):
    """The last quote of a pair, and how old it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [{**QUOTE, "age": 12, "stale": False}]})

    age: Annotated[int, Field(description="Seconds since the source confirmed it; also in the header `Age`")]
    stale: Annotated[bool, Field(description="The source has failed to confirm it for too long")]

    @classmethod
    def of(cls, quote: models.Quote, now: datetime) -> Self:
        age = max(0.0, (now - quote.updated_at).total_seconds())
        said = Quote.model_validate(quote).model_dump()
        return cls(**said, age=int(age), stale=age > settings.stale_after)


class History(BaseModel):
    """A page of the history, the newest first."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"items": [QUOTE], "next": "/currency/history?limit=1&to=1795353612"}]}
    )

    items: list[Quote]
    next: Annotated[str | None, Field(description="Where the older ones are; null on the last page")]


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str
