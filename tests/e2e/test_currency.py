"""The currency service as its users have it: over HTTP, in one process or in several, and in a browser."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.browser import Page, browser
from tests.e2e.cli import Running
from tests.e2e.quotes_server import FIRST, QuotesServer
from tests.servers.postgresql import PostgresServer
from tests.servers.process import free_port

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0
"""Seconds after which a test that waits for something has failed."""
APP = "examples.currency.app:app"
CARTEIRO = [sys.executable, "-c", "from carteiro.cli import main; main()"]
OFTEN = {"CURRENCY_EVERY": "1", "CURRENCY_RATE": "100/s"}

needs_chromium = pytest.mark.needs("chromium")


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))


@pytest.fixture
def quotes(monkeypatch: pytest.MonkeyPatch) -> Iterator[QuotesServer]:
    with QuotesServer() as server:
        monkeypatch.setenv("CURRENCY_SOURCE", server.url)
        yield server


@contextmanager
def served(*arguments: str, **settings: str) -> Iterator[httpx.Client]:
    with starting(*arguments, **settings) as (web, client):
        yield client
        web.send(signal.SIGINT)
        assert web.ended() == 0, web.output


@contextmanager
def starting(*arguments: str, **settings: str) -> Iterator[tuple[Running, httpx.Client]]:
    port = free_port()
    command = [sys.executable, "-m", "examples.currency", "--port", str(port), *arguments]
    web = Running(command, Path.cwd(), settings, terminal=False)
    try:
        web.until("Uvicorn running")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client:
            yield web, client
    finally:
        web.kill()


@contextmanager
def carteiro(*arguments: str, **settings: str) -> Iterator[Running]:
    """A command that goes on, once it is ready; at the end it is stopped in good order."""
    running = Running([*CARTEIRO, *arguments], Path.cwd(), settings, terminal=False)
    try:
        running.until("is ready")
        yield running
        running.send()
        assert running.ended() == 0, running.output
    finally:
        running.kill()


def until_bid(client: httpx.Client, bid: str, pair: str = "USD-BRL") -> dict[str, Any]:
    """The last quote of the pair, once it is that one."""
    deadline = time.monotonic() + PATIENCE
    while True:
        answer = client.get(f"/currency/?pair={pair}")
        said: dict[str, Any] = answer.json()
        if said.get("bid") == bid:
            return said
        assert time.monotonic() < deadline, answer.text


def bids(client: httpx.Client) -> list[str]:
    return [one["bid"] for one in client.get("/currency/history").json()["items"]]


# -- in one process, and in several ----------------------------------------------------------------------------------


def test_a_service_that_is_new_has_a_quote_at_once_and_follows_the_source(quotes: QuotesServer):
    with served(**OFTEN) as client:
        until_bid(client, "5.4279")
        for number in range(1, 4):
            quotes.quotes("USD-BRL", f"5.{number}", FIRST + 60 * number)
            until_bid(client, f"5.{number}")
        assert bids(client) == ["5.3", "5.2", "5.1", "5.4279"]
        assert client.get("/currency/latest?pair=EUR-BRL").json()["bid"] == "6.2503"
        assert client.get("/health/ready").status_code == 200


def test_api_worker_and_scheduler_run_apart(quotes: QuotesServer):
    with served("--web-only", **OFTEN) as client, carteiro("run", APP, "--no-schedules", **OFTEN):
        until_bid(client, "5.4279")  # what the API asked for when it started
        assert len(quotes.asked) == 1
        quotes.quotes("USD-BRL", "5.5", FIRST + 60)
        assert client.get("/currency/latest").json()["bid"] == "5.5"
        assert len(quotes.asked) == 2, "nobody fires, so only who asks is served"
        with carteiro("scheduler", APP, **OFTEN):
            quotes.quotes("USD-BRL", "5.6", FIRST + 120)
            until_bid(client, "5.6")
            quotes.until_asked(5)


def test_on_redis_they_run_apart_too(quotes: QuotesServer, redis_url: str):
    settings = {**OFTEN, "CARTEIRO_BROKER": redis_url}
    with (
        served("--web-only", **settings) as client,
        carteiro("run", APP, "--no-schedules", **settings),
        carteiro("scheduler", APP, **settings),
    ):
        until_bid(client, "5.4279")
        quotes.until_asked(3)


@pytest.mark.slow
def test_many_who_fire_make_one_fetch_of_each_firing(quotes: QuotesServer):
    with ExitStack() as stack:
        client = stack.enter_context(served(**OFTEN))
        for command in ("run", "scheduler", "scheduler"):
            stack.enter_context(carteiro(command, APP, **OFTEN))
        quotes.until_asked(len(quotes.asked) + 5)
        until_bid(client, "5.4279")
    listed = subprocess.run([*CARTEIRO, "schedule", "list", "--app", APP, "--json"], stdout=subprocess.PIPE, check=True)
    (schedule,) = json.loads(listed.stdout)
    assert schedule["fired"] >= 5
    assert len(quotes.asked) <= schedule["fired"] + 1, "but for what the API asked for when it started"


def test_without_a_worker_the_latest_cannot_be_had_and_what_is_known_can(quotes: QuotesServer):
    with served() as client:
        until_bid(client, "5.4279")
    with served("--web-only", CURRENCY_LATEST_TIMEOUT="0.2") as client:
        refused = client.get("/currency/latest")
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        assert client.get("/currency/").json()["bid"] == "5.4279"


def test_after_a_kill_and_while_the_source_is_away_the_last_quote_is_served(quotes: QuotesServer):
    with starting(**OFTEN) as (web, client):
        known = until_bid(client, "5.4279")
        web.process.kill()
        web.ended()
    quotes.fails()
    with served(CURRENCY_STALE_AFTER="0.001", **OFTEN) as client:
        said = client.get("/currency/")
        assert said.json()["id"] == known["id"]
        assert said.json()["stale"] is True
        assert int(said.headers["age"]) == said.json()["age"] >= 0
        quotes.until_asked(len(quotes.asked) + 2)
        refused = client.get("/currency/latest")
        assert refused.status_code in (502, 503)
        assert "the source answered 500" in refused.json()["detail"]
        assert bids(client) == ["5.4279"]


@pytest.mark.slow
@pytest.mark.parametrize("system", ["sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgresql"))])
def test_those_who_start_at_the_same_time_migrate_once(quotes: QuotesServer, system: str):
    with ExitStack() as stack:
        database = "sqlite:///together.db"
        if system == "postgresql":
            database = stack.enter_context(PostgresServer()).url
        ports = [free_port() for _ in range(4)]
        command = [sys.executable, "-m", "examples.currency", "--port"]
        settings = {**OFTEN, "CURRENCY_DATABASE": database}
        services = [Running([*command, str(port)], Path.cwd(), settings, terminal=False) for port in ports]
        for one in services:
            stack.callback(one.kill)
        for one, port in zip(services, ports, strict=True):
            one.until("Uvicorn running")
            client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE))
            until_bid(client, "5.4279")
        quotes.quotes("USD-BRL", "5.5", FIRST + 60)
        until_bid(client, "5.5")
        assert bids(client) == ["5.5", "5.4279"]


# -- the page --------------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_from_elsewhere(quotes: QuotesServer):
    with served("--web-only") as client:
        page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "://" not in page.text


def text(page: Page, selector: str) -> str:
    return str(page.run(f"document.querySelector('{selector}').innerText"))


@needs_chromium
def test_in_a_browser_the_quotes_come_by_themselves_and_their_history_is_drawn(quotes: QuotesServer, tmp_path: Path):
    quotes.hangs()
    with served(**OFTEN) as client, browser(tmp_path) as page:
        page.open(str(client.base_url))
        page.until("document.querySelector('#chart .empty')")
        assert page.run("[...document.querySelectorAll('.pair .quoted')].map((one) => one.textContent)") == (
            ["no quote yet"] * 3
        )
        quotes.mend()
        page.until("document.querySelector('[data-pair=USD-BRL] .bid').textContent === '5.4279 BRL'")
        for number in range(1, 6):
            quotes.quotes("BTC-BRL", f"51234{number}", FIRST + 60 * number)
            until_bid(client, f"51234{number}", "BTC-BRL")
        page.until("document.querySelector('[data-pair=BTC-BRL] .bid').textContent === '512,345 BRL'")
        page.run("document.querySelector('[data-pair=BTC-BRL]').click()")
        assert text(page, "h2") == "Bitcoin/Real Brasileiro, BTC-BRL"
        assert page.run("document.querySelector('#chart .line').getAttribute('d').match(/[ML]/g).length") == 6
        page.run("""document.querySelector("#chart").dispatchEvent(new PointerEvent("pointermove", { clientX: 0 }))""")
        assert text(page, "#tip").startswith("512,345 · ")
        page.picture(tmp_path / "history.png")
        assert page.troubles == []


@needs_chromium
@pytest.mark.parametrize(("theme", "width"), [("light", 1000), ("dark", 390)], ids=["light", "dark, on a phone"])
def test_in_a_browser_an_outage_is_told_and_what_is_known_stays(
    quotes: QuotesServer, tmp_path: Path, theme: str, width: int
):
    with browser(tmp_path) as page, starting(CURRENCY_STALE_AFTER="4", **OFTEN) as (web, client):
        page.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        page.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
        page.open(str(client.base_url))
        page.until("document.querySelector('#state.fresh')")
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        quotes.fails()
        page.until("document.querySelector('#state.stale') && document.querySelectorAll('.pair.stale').length === 3")
        assert "these are the last quotes that are known" in text(page, "#trouble")
        page.run("document.querySelector('#fetch').click()")
        page.until("document.querySelector('output').textContent.startsWith('Not fetched: the source answered 500')")
        page.picture(tmp_path / "stale.png")
        web.process.kill()
        page.until("document.querySelector('#state.away')")
        assert "5.4279" in text(page, "[data-pair=USD-BRL] .bid")
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        page.picture(tmp_path / "away.png")
        assert page.troubles == []
