"""A source of quotes that speaks as AwesomeAPI does, and that a test can have fail, hang, and talk nonsense."""

from __future__ import annotations

import json
import threading
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Self
from zoneinfo import ZoneInfo

PATIENCE = 60.0
"""Seconds after which whoever was to ask has not."""

BRASILIA: Final = ZoneInfo("America/Sao_Paulo")
NAMES = {
    "USD-BRL": "Dólar Americano/Real Brasileiro",
    "EUR-BRL": "Euro/Real Brasileiro",
    "BTC-BRL": "Bitcoin/Real Brasileiro",
}
BIDS = {"USD-BRL": "5.4279", "EUR-BRL": "6.2503", "BTC-BRL": "512345"}
FIRST = 1_780_000_000
"""When its first quotes were made, in seconds since the epoch: 2026-05-28, 17:26:40 in Brasília."""


class QuotesServer:
    """`with` starts it on a free port. It gives the same quotes until it is told otherwise."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        """The paths that were asked for."""
        self._quotes = {pair: quote(pair, bid) for pair, bid in BIDS.items()}
        self._trouble: tuple[int, bytes] | None = None
        self._hangs = False
        self._changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.mend()
        self._server.shutdown()
        self._server.server_close()

    # -- what it does ------------------------------------------------------------------------------------------------

    def quotes(self, pair: str, bid: str, at: int, **fields: Any) -> None:
        """From now on this is the last quote of the pair; `at` is in seconds since the epoch."""
        with self._changed:
            self._quotes[pair] = {**quote(pair, bid, at), **fields}

    def fails(self, status: int = 500, body: bytes = b'{"status":500,"code":"InternalError"}') -> None:
        """It answers this, whatever it is asked; with 200, a body that is no quote."""
        with self._changed:
            self._trouble = status, body

    def hangs(self) -> None:
        """It takes what is asked, and does not answer until it is mended."""
        with self._changed:
            self._hangs = True

    def mend(self) -> None:
        with self._changed:
            self._trouble, self._hangs = None, False
            self._changed.notify_all()

    def until_asked(self, times: int) -> None:
        """Return once it was asked so often in all."""
        with self._changed:
            there = self._changed.wait_for(lambda: len(self.asked) >= times, PATIENCE)
        assert there, f"the source was asked {len(self.asked)} times, not {times}"

    # -- how ---------------------------------------------------------------------------------------------------------

    def _answer(self, path: str) -> tuple[int, bytes]:
        with self._changed:
            self.asked.append(path)
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._hangs)
            if self._trouble is not None:
                return self._trouble
            known, pairs = "/json/last/", path.removeprefix("/json/last/").split(",")
            if not path.startswith(known) or not set(pairs) <= self._quotes.keys():
                return 404, b'{"status":404,"code":"CoinNotExists","message":"moeda nao encontrada"}'
            return 200, json.dumps({pair.replace("-", ""): self._quotes[pair] for pair in pairs}).encode()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        answer = self._answer

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = answer(self.path)
                try:
                    self.send_response(status)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:  # who asked waits no longer
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing: pytest shows what is worth seeing."""

        return Handler


def quote(pair: str, bid: str, at: int = FIRST) -> dict[str, str]:
    """As AwesomeAPI writes it: all of it text."""
    code, codein = pair.split("-")
    return {
        "code": code,
        "codein": codein,
        "name": NAMES[pair],
        "high": bid,
        "low": bid,
        "varBid": "0.0123",
        "pctChange": "0.228",
        "bid": bid,
        "ask": bid,
        "timestamp": str(at),
        "create_date": f"{datetime.fromtimestamp(at, BRASILIA):%Y-%m-%d %H:%M:%S}",
    }
