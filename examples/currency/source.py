"""The source: AwesomeAPI, or what speaks as it does. What it answers is believed once it has been looked at."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated
from zoneinfo import ZoneInfo

import httpx
from circuitbreaker import CircuitBreaker
from pydantic import AfterValidator, BaseModel, Field, TypeAdapter, ValidationError

from examples.currency.settings import settings

BRASILIA = ZoneInfo("America/Sao_Paulo")
FAILURES = 5
"""So many in a row, and the source is left alone for a while."""


class SourceFailed(Exception):
    """The source was asked in vain: it is away, slow, refuses, or answers what makes no sense."""


class SourceCutOff(SourceFailed):
    """The source was not asked, for it has failed so often. It will be again after `retry_after` seconds."""

    def __init__(self, text: str, retry_after: int = 0) -> None:
        super().__init__(text)
        self.retry_after = retry_after


def _utc(date: datetime) -> datetime:
    """The source's dates are Brasília's, and do not say so."""
    return date.replace(tzinfo=date.tzinfo or BRASILIA).astimezone(UTC)


Price = Annotated[Decimal, Field(gt=0, max_digits=24, decimal_places=12)]
Code = Annotated[str, Field(pattern="^[A-Z]{2,10}$")]


class Quoted(BaseModel, frozen=True):
    """A quote as the source gives it. `timestamp` is in seconds since the epoch."""

    code: Code
    codein: Code
    name: Annotated[str, Field(min_length=1, max_length=200)]
    high: Price
    low: Price
    bid: Price
    ask: Price
    timestamp: Annotated[int, Field(gt=0, lt=10_000_000_000)]  # and not milliseconds
    create_date: Annotated[datetime, AfterValidator(_utc)]


_answer = TypeAdapter(dict[str, Quoted])


class Source:
    """Asks over HTTP, behind a circuit breaker. All that goes wrong is a SourceFailed that says what."""

    def __init__(self, address: str, patience: float, cooldown: float) -> None:
        self._address = address
        self._patience = patience
        self._tls = httpx.create_ssl_context()  # once: it takes a tenth of a second, in which nothing else would run
        self._breaker = CircuitBreaker(FAILURES, cooldown, SourceFailed, "source")

    async def quotes(self, pairs: Sequence[str]) -> list[Quoted]:
        """All of these pairs, in their order. Raises SourceFailed, and SourceCutOff without asking."""
        if self._breaker.opened:
            wait = max(1, self._breaker.open_remaining)
            failures, last = self._breaker.failure_count, self._breaker.last_failure
            raise SourceCutOff(f"{last}; after {failures} failures it is left alone for {wait} s", wait)
        with self._breaker:
            return _read(await self._ask(pairs), pairs)

    async def _ask(self, pairs: Sequence[str]) -> bytes:
        try:
            async with (
                asyncio.timeout(self._patience),  # httpx has a patience for each piece, and this is for the whole
                httpx.AsyncClient(base_url=self._address, timeout=self._patience, verify=self._tls) as client,
            ):
                answer = await client.get(f"/json/last/{','.join(pairs)}")
                return answer.raise_for_status().content
        except (TimeoutError, httpx.TimeoutException) as error:
            raise SourceFailed(f"the source did not answer within {self._patience:g} s") from error
        except httpx.HTTPStatusError as error:
            raise SourceFailed(f"the source answered {error.response.status_code}") from error
        except httpx.HTTPError as error:
            raise SourceFailed(f"the source cannot be reached: {error}") from error


def _read(answer: bytes, pairs: Sequence[str]) -> list[Quoted]:
    try:
        quotes = {f"{one.code}-{one.codein}": one for one in _answer.validate_json(answer).values()}
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the answer"
        raise SourceFailed(f"the source's answer makes no sense: {place}: {first['msg']}") from error
    if missing := [pair for pair in pairs if pair not in quotes]:
        raise SourceFailed(f"the source's answer makes no sense: it has no {', '.join(missing)}")
    return [quotes[pair] for pair in pairs]


_source = Source(settings.source, settings.patience, settings.cooldown)


def source() -> Source:
    """One for the process, whose failures its breaker counts."""
    return _source
