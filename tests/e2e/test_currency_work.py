"""The currency service by a clock that the test holds: what is fetched each minute, and what is answered of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import alembic.command
import httpx
import pytest
from alembic.config import Config
from sqlalchemy.ext.asyncio import async_sessionmaker

from carteiro.testing import TestApp
from examples.currency import db
from examples.currency.api import service
from examples.currency.app import app, refresh
from examples.currency.settings import Settings
from examples.currency.source import FAILURES, Source, source
from tests.e2e.quotes_server import FIRST, QuotesServer, quote
from tests.servers.postgresql import PostgresServer

FIELDS = [
    "id", "code", "codein", "name", "high", "low", "bid", "ask", "timestamp", "create_date", "created_at", "updated_at",
]  # fmt: skip


class Service(NamedTuple):
    """The service under test: its source, its time, and a client of its API."""

    source: QuotesServer
    time: TestApp
    client: httpx.AsyncClient

    async def get(self, path: str, status: int = 200) -> Any:
        answer = await self.client.get(path)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def latest(self, status: int = 200, pair: str = "USD-BRL") -> Any:
        """What `GET /currency/latest` answers, once the time has passed that it takes."""
        asking = asyncio.ensure_future(self.get(f"/currency/latest?pair={pair}", status))
        # The held clock knows nothing of the database's thread: time passes only for who is not done by then.
        while not (await asyncio.wait([asking], timeout=0.2))[0]:
            await self.time.advance(seconds=1)
        return await asking

    async def bids(self, pair: str = "USD-BRL") -> list[str]:
        """The history of the pair, the newest first."""
        return [one["bid"] for one in (await self.get(f"/currency/history?pair={pair}"))["items"]]


@pytest.fixture(scope="module")
def postgres(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(autouse=True)
def _own_database(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the test's own or, for those who say `on_each_database`, a database of PostgreSQL too."""
    url = f"sqlite:///{tmp_path}/currency.db"
    if getattr(request, "param", "") == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        server.says(f'CREATE DATABASE "{tmp_path.name}"')
        url = server.url_of(tmp_path.name)
    engine = db.connect(url)
    monkeypatch.setattr(db, "engine", engine)
    monkeypatch.setattr(db, "sessions", async_sessionmaker(engine, expire_on_commit=False))


on_each_database = pytest.mark.parametrize(
    "_own_database",
    ["sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgresql"))],
    indirect=True,
)


@pytest.fixture
def quotes() -> Iterator[QuotesServer]:
    with QuotesServer() as server:
        yield server


@asynccontextmanager
async def running(quotes: QuotesServer, patience: float = 20) -> AsyncIterator[Service]:
    asked = Source(quotes.url, patience, Settings().cooldown)
    transport = httpx.ASGITransport(service())
    async with (
        # A source that answers may take its time on a busy machine: that it is silent is no reason for time to pass.
        TestApp(app, overrides={source: lambda: asked}, patience=5) as time,
        httpx.AsyncClient(transport=transport, base_url="http://currency") as client,
    ):
        with mock.patch("circuitbreaker.monotonic", time.clock.monotonic):
            yield Service(quotes, time, client)


# -- each minute -----------------------------------------------------------------------------------------------------


async def test_each_minute_all_pairs_are_fetched_by_one_request(quotes: QuotesServer):
    async with running(quotes) as it:
        await it.time.advance(minutes=1)
        assert quotes.asked == ["/json/last/USD-BRL,EUR-BRL,BTC-BRL"]
        quotes.quotes("USD-BRL", "5.4300", FIRST + 60)
        await it.time.advance(minutes=2)
        assert len(quotes.asked) == 3
        assert await it.bids() == ["5.4300", "5.4279"]
        assert await it.bids("EUR-BRL") == ["6.2503"]
        assert await it.bids("BTC-BRL") == ["512345"]


@on_each_database
async def test_a_quote_that_comes_again_is_confirmed_and_no_other_one(quotes: QuotesServer):
    async with running(quotes) as it:
        await it.time.advance(minutes=1)
        first = await it.get("/currency/")
        await it.time.advance(minutes=3)
        again = await it.get("/currency/")
        assert await it.bids() == ["5.4279"]
    assert again["updated_at"] > first["updated_at"]
    assert {**again, "updated_at": first["updated_at"]} == first


@on_each_database
async def test_a_worker_that_dies_before_the_ack_fetches_again_and_stores_nothing_twice(quotes: QuotesServer):
    async with running(quotes) as it:
        it.time.crash_at(refresh, "before_ack")
        await it.time.advance(minutes=2)
        assert it.time.crashes == 1
        assert await it.bids() == ["5.4279"]


@on_each_database
async def test_money_is_kept_to_the_digit(quotes: QuotesServer):
    quotes.quotes("BTC-BRL", "512345.100000000001", FIRST, ask="0.10", high="900719925474.099301", low="0.000000000001")
    async with running(quotes) as it:
        await it.time.advance(minutes=1)
        said = await it.get("/currency/?pair=BTC-BRL")
    assert [said[name] for name in ("bid", "ask", "high", "low")] == [
        "512345.100000000001", "0.10", "900719925474.099301", "0.000000000001",
    ]  # fmt: skip
    assert Decimal(said["bid"]) == Decimal("512345.100000000001")


# -- a source in trouble ---------------------------------------------------------------------------------------------


async def test_while_the_source_is_away_the_last_quote_is_served_with_its_age_and_marked_stale(quotes: QuotesServer):
    async with running(quotes) as it:
        await it.time.advance(minutes=1)
        known = await it.get("/currency/")
        assert (known["stale"], known["age"]) == (False, 0)
        quotes.fails()
        await it.time.advance(minutes=10)
        answer = await it.client.get("/currency/")
        assert answer.headers["age"] == "600"
        assert answer.json() == {**known, "stale": True, "age": 600}
        quotes.mend()
        await it.time.advance(minutes=1)
        assert (await it.get("/currency/"))["stale"] is False


async def test_a_failure_is_tried_again_within_the_minute(quotes: QuotesServer):
    async with running(quotes) as it:
        quotes.fails()
        await it.time.advance(seconds=60)
        quotes.mend()
        await it.time.advance(seconds=30)
        assert len(quotes.asked) == 2
        assert await it.bids() == ["5.4279"]


async def test_a_source_that_fails_again_and_again_is_left_alone(quotes: QuotesServer):
    async with running(quotes) as it:
        quotes.fails()
        await it.time.advance(minutes=60)
        assert FAILURES + 50 < len(quotes.asked) < FAILURES + 60  # and not three times a minute
        assert "the source answered 500; after" in (await it.latest(503))["detail"]
        asked = len(quotes.asked)
        quotes.mend()
        await it.time.advance(minutes=1)
        assert len(quotes.asked) == asked + 1
        assert (await it.get("/currency/"))["stale"] is False


GARBAGE = {
    "no JSON": b"<html>Bad Gateway</html>",
    "cut off": b'{"USDBRL": {"code": "USD", "cod',
    "another shape": b"[1, 2, 3]",
    "nothing": b"",
    "a pair too few": json.dumps({"USDBRL": quote("USD-BRL", "5.4")}).encode(),
    "no number": json.dumps({"USDBRL": quote("USD-BRL", "n/a")}).encode(),
    "not a number": json.dumps({"USDBRL": quote("USD-BRL", "NaN")}).encode(),
    "infinite": json.dumps({"USDBRL": quote("USD-BRL", "1e999")}).encode(),
    "nothing for it": json.dumps({"USDBRL": quote("USD-BRL", "0")}).encode(),
    "milliseconds": json.dumps({"USDBRL": {**quote("USD-BRL", "5.4"), "timestamp": str(FIRST * 1000)}}).encode(),
    "not text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE)
async def test_an_answer_that_makes_no_sense_is_not_stored_and_said(quotes: QuotesServer, body: bytes):
    async with running(quotes) as it:
        quotes.fails(200, body)
        assert "the source's answer makes no sense: " in (await it.latest(502))["detail"]
        assert await it.bids() == []


@pytest.mark.parametrize("status", [301, 404, 429, 500])
async def test_an_error_of_the_source_is_passed_on_as_its_own(quotes: QuotesServer, status: int):
    async with running(quotes) as it:
        quotes.fails(status)
        assert (await it.latest(502))["detail"] == f"the source answered {status}"


async def test_a_source_that_is_slow_is_given_up_and_nobody_waits_for_it(quotes: QuotesServer):
    async with running(quotes, patience=0.05) as it:
        quotes.hangs()
        assert (await it.latest(502))["detail"] == "the source did not answer within 0.05 s"


async def test_a_source_that_is_gone_cannot_be_reached(quotes: QuotesServer):
    with QuotesServer() as gone:
        pass
    async with running(gone) as it:
        assert (await it.latest(502))["detail"].startswith("the source cannot be reached: ")


# -- what is answered ------------------------------------------------------------------------------------------------


async def test_the_last_quote_has_all_the_fields(quotes: QuotesServer):
    async with running(quotes) as it:
        await it.time.advance(minutes=1)
        said = await it.get("/currency/")
        assert list(said) == [*FIELDS, "age", "stale"]
        (kept,) = (await it.get("/currency/history"))["items"]
        assert list(kept) == FIELDS
    assert (said["code"], said["codein"], said["name"]) == ("USD", "BRL", "Dólar Americano/Real Brasileiro")
    assert (said["timestamp"], said["create_date"]) == (FIRST, "2026-05-28T20:26:40Z")  # Brasília's, in UTC
    assert said["created_at"] == said["updated_at"] == "2026-01-01T00:01:00Z"


async def test_a_pair_can_be_named_and_one_that_is_not_followed_is_told_so(quotes: QuotesServer):
    async with running(quotes) as it:
        await it.time.advance(minutes=1)
        assert (await it.get("/currency/?pair=eur-brl"))["code"] == "EUR"
        assert await it.get("/currency/pairs") == ["USD-BRL", "EUR-BRL", "BTC-BRL"]
        for path in ("/currency/", "/currency/latest", "/currency/history"):
            told = await it.get(f"{path}?pair=XYZ-BRL", 404)
            assert told["detail"] == "`XYZ-BRL` is not followed: there are USD-BRL, EUR-BRL, BTC-BRL"
        assert len(quotes.asked) == 1


async def test_before_the_first_fetch_there_is_nothing_and_it_says_when_to_come_again(quotes: QuotesServer):
    async with running(quotes) as it:
        answer = await it.client.get("/currency/")
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
        assert answer.json()["detail"] == "no quote of USD-BRL has been fetched yet"
        assert await it.get("/currency/history") == {"items": [], "next": None}


async def test_the_latest_is_fetched_now_and_stored(quotes: QuotesServer):
    async with running(quotes) as it:
        assert (await it.latest(pair="BTC-BRL"))["bid"] == "512345"
        assert (await it.get("/currency/"))["bid"] == "5.4279"
        assert len(quotes.asked) == 1


async def test_all_who_want_the_latest_at_once_are_answered_by_one_fetch(quotes: QuotesServer):
    async with running(quotes) as it:
        quotes.hangs()
        first = asyncio.ensure_future(it.get("/currency/latest"))
        await asyncio.to_thread(quotes.until_asked, 1)
        others = [asyncio.ensure_future(it.get(f"/currency/latest?pair={pair}")) for pair in ("EUR-BRL", "BTC-BRL")]
        await it.time.advance(seconds=1)
        quotes.mend()
        assert [one["code"] for one in await asyncio.gather(first, *others)] == ["USD", "EUR", "BTC"]
        assert len(quotes.asked) == 1


async def test_the_source_is_asked_no_more_often_than_the_rate_says(quotes: QuotesServer):
    async with running(quotes) as it:
        began = it.time.now
        for _ in range(10):
            await it.time.result(await refresh.apply_async())
        assert (it.time.now - began).total_seconds() >= 17


@on_each_database
async def test_the_history_comes_page_by_page_the_newest_first(quotes: QuotesServer):
    async with running(quotes) as it:
        for minute in range(7):
            quotes.quotes("USD-BRL", f"5.{minute}", FIRST + 60 * minute)
            await it.time.advance(minutes=1)
        pages = []
        following = f"/currency/history?limit=2&from={FIRST + 60}"
        while following:
            page = await it.get(following)
            pages.append([one["bid"] for one in page["items"]])
            following = page["next"]
        assert pages == [["5.6", "5.5"], ["5.4", "5.3"], ["5.2", "5.1"]]


@on_each_database
async def test_the_history_is_of_a_range_of_time(quotes: QuotesServer):
    async with running(quotes) as it:
        for minute in range(4):
            quotes.quotes("USD-BRL", f"5.{minute}", FIRST + 60 * minute)
            await it.time.advance(minutes=1)
        in_brasilia = "from=2026-05-28T17:27:40-03:00&to=2026-05-28T17:29:40-03:00"
        for query in (f"from={FIRST + 60}&to={FIRST + 180}", in_brasilia):
            found = (await it.get(f"/currency/history?{query}"))["items"]
            assert [one["bid"] for one in found] == ["5.2", "5.1"]
        for nonsense in ("limit=0", "limit=1501", "from=yesterday", "to=2026-05-28T17:27:40"):
            await it.get(f"/currency/history?{nonsense}", 422)


# -- what it is made of ----------------------------------------------------------------------------------------------


def test_openapi_tells_of_every_answer_with_examples():
    document = service().openapi()
    told = {path: document["paths"][path]["get"]["responses"] for path in document["paths"] if "/currency" in path}
    assert {path: sorted(answers) for path, answers in told.items()} == {
        "/currency/": ["200", "404", "422", "503"],
        "/currency/latest": ["200", "404", "422", "502", "503"],
        "/currency/history": ["200", "404", "422"],
        "/currency/pairs": ["200"],
    }
    for answers in told.values():
        for status in set(answers) - {"200", "422"}:
            assert answers[status]["content"]["application/json"]["example"]["detail"]
    schemas = document["components"]["schemas"]
    for name in ("Quote", "LastQuote", "History"):
        (example,) = schemas[name]["examples"]
        assert example.keys() == schemas[name]["properties"].keys()
    assert list(schemas["Quote"]["properties"]) == FIELDS
    assert schemas["Quote"]["properties"]["bid"]["type"] == "string"


@on_each_database
async def test_the_migrations_make_what_the_models_say():
    async with db.database(), db.engine.begin() as connection:
        config = Config(Path(db.__file__).with_name("alembic.ini"))

        def check(sync: Any) -> None:
            config.attributes["connection"] = sync
            alembic.command.check(config)  # raises where they differ
            alembic.command.downgrade(config, "base")
            alembic.command.upgrade(config, "head")

        await connection.run_sync(check)


def test_what_is_set_from_outside_is_checked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CURRENCY_PAIRS", "USD-BRL,GBP-BRL")
    assert Settings.from_environment().pairs == ("USD-BRL", "GBP-BRL")
    for wrong in ("", "USDBRL", "USD-BRL,../secret"):
        monkeypatch.setenv("CURRENCY_PAIRS", wrong)
        with pytest.raises(ValueError, match="pairs"):
            Settings.from_environment()
