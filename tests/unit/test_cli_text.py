"""How the command line reads times and headers, and how it prints bodies, tables and secrets."""

from __future__ import annotations

import asyncio
import io
import logging
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import msgspec
import pytest
import typer

from carteiro.cli.exits import CommandError, Exit, UsageError, exit_code, explain
from carteiro.cli.output import age, as_json, as_text, printable, show_table
from carteiro.cli.parameters import header, headers, length, moment
from carteiro.cli.schedule_shown import when
from carteiro.cli.worker import named, without_password
from carteiro.errors import BrokerError, BrokerUnavailable
from carteiro.message import NO_HEADERS, Message, Subscription
from carteiro.ports.clock import SYSTEM_CLOCK
from carteiro.telemetry.lines import MessageLines
from carteiro.telemetry.logs import configure


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("1.5", 1.5), ("5m", 300), ("1h30m", 5400), ("500ms", 0.5)])
def test_a_length_of_time_is_seconds_or_has_units(text: str, seconds: float) -> None:
    assert length(text) == seconds


def test_a_moment_is_a_date_here_or_so_long_ago_or_the_beginning() -> None:
    assert moment("earliest") == 0
    assert moment("2026-11-01T12:30:00+00:00") == 1793536200
    assert moment("2026-11-01") == datetime(2026, 11, 1).astimezone().timestamp()
    before = SYSTEM_CLOCK.time()
    assert before - 7 * 86400 <= moment("7d") <= SYSTEM_CLOCK.time() - 7 * 86400


@pytest.mark.parametrize("parse", [length, moment, header])
def test_what_is_none_is_refused_by_name(parse) -> None:
    with pytest.raises(typer.BadParameter, match="`soon`"):
        parse("soon")


def test_a_header_is_split_at_its_first_equals_sign() -> None:
    assert headers(["a=b=c", " x =", "a=2"]) == {"a": "2", "x": ""}
    with pytest.raises(typer.BadParameter):
        header("=value")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, None), (-1, "0.0s"), (0.42, "0.4s"), (42, "42s"), (192, "3m 12s"), (18_120, "5h 2m"), (522_000, "6d 1h")],
)
def test_an_age_has_its_two_largest_units(seconds: float | None, text: str | None) -> None:
    assert age(seconds) == text


@pytest.mark.parametrize(
    ("body", "content_type", "json", "text"),
    [
        (b'{"n": 1.10}', None, '{"n": 1.10}', '{"n": 1.10}'),
        (b'"Ana"', None, '"Ana"', '"Ana"'),
        (b"plain", None, '"plain"', "plain"),
        (b"12", "text/plain", '"12"', "12"),
        (b"\xff\x00", None, '{"base64":"/wA="}', '{"base64": "/wA="}'),
        (msgspec.msgpack.encode({"n": 1}), "application/msgpack", '{"n":1}', '{"n": 1}'),
    ],
)
def test_a_body_is_shown_as_what_it_is(body: bytes, content_type: str | None, json: str, text: str) -> None:
    given = NO_HEADERS if content_type is None else {"content-type": content_type}
    assert msgspec.json.encode(as_json(body, given)).decode() == json
    assert as_text(body, given, indent=0) == text


def test_what_would_steer_a_terminal_is_spelled_out() -> None:
    assert printable("a\x1b[31mb\r\tc\nd é") == "a\\x1b[31mb\\r\tc\nd é"


def test_a_table_without_a_terminal_is_plain_columns(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(("topic", "waiting"), [("a", 7), ("orders", 1200)])
    assert capsys.readouterr().out == "topic   waiting\na             7\norders     1200\n"


@pytest.mark.parametrize(
    ("after", "shown"),
    [
        (192, "in 3m 12s (02:03:12 -03)"),
        (7_260, "in 2h 1m (04:01 -03)"),
        (86_400, "in 1d 0h (Tue 2026-11-24 02:00 -03)"),
        (-1, "now (01:59:59 -03)"),
        (-60, "due for 1m 0s (01:59 -03)"),
    ],
)
def test_when_a_schedule_fires_is_a_wait_and_a_time_in_its_zone(after: float, shown: str) -> None:
    now = datetime(2026, 11, 23, 5, tzinfo=UTC).timestamp()
    assert when(now + after, now, ZoneInfo("America/Sao_Paulo")) == shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///a.db", "sqlite:///a.db"),
        ("redis://me:secret@host:6379/0?x=1", "redis://me:***@host:6379/0?x=1"),
        ("redis://:p%40ss@host", "redis://:***@host"),
    ],
)
def test_a_password_is_not_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_a_broadcast_is_named_so_and_not_by_its_process() -> None:
    subscriptions = [Subscription("b", "shop"), Subscription("a", "id-1.handler", ephemeral=True)]
    assert named(subscriptions) == ["a [broadcast]", "b [shop]"]


def test_an_error_is_told_in_one_line_below_its_preface() -> None:
    assert explain(BrokerError("first\n  second")) == "carteiro: first second"
    assert explain(CommandError("no", preface="Traceback…\n")) == "Traceback…\ncarteiro: no"
    assert explain(ValueError("odd")) == "carteiro: ValueError: odd (CARTEIRO_DEBUG=1 shows the traceback)"


def test_exit_codes_tell_errors_apart() -> None:
    errors = (BrokerUnavailable("x"), UsageError("x"), BrokerError("x"), KeyboardInterrupt())
    assert [exit_code(error) for error in errors] == [Exit.UNAVAILABLE, Exit.USAGE, Exit.FAILED, Exit.INTERRUPTED]


# -- the lines of a message, and the log -------------------------------------------------------------------------------

MESSAGE = Message("id-1", "orders", b"", None, NO_HEADERS, "cause-1", 0.0, 2)


async def test_a_terminal_that_is_gone_fails_no_message() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    async def handle(message: Message) -> str:
        return "done"

    assert await MessageLines(Gone(), SYSTEM_CLOCK)(MESSAGE, handle) == "done"


async def test_an_interrupted_handler_is_told_apart_from_a_failed_one() -> None:
    stream = io.StringIO()
    lines = MessageLines(stream, SYSTEM_CLOCK)

    async def interrupted(message: Message) -> None:
        raise asyncio.CancelledError

    async def failed(message: Message) -> None:
        raise ValueError("two\nlines")

    with pytest.raises(asyncio.CancelledError):
        await lines(MESSAGE, interrupted)
    with pytest.raises(ValueError, match="two"):
        await lines(MESSAGE, failed)
    words = [line.split()[1] for line in stream.getvalue().splitlines()]
    assert words == ["received", "interrupted", "received", "failed"]
    assert stream.getvalue().endswith("ValueError: two lines\n")


@pytest.fixture
def own_logging(monkeypatch: pytest.MonkeyPatch):
    """The `carteiro` logger as in a fresh process."""
    logger = logging.getLogger("carteiro")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", logger.propagate)
    yield logger
    logger.setLevel(logging.NOTSET)


def test_log_lines_as_json_keep_their_extra_fields(
    own_logging: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own
    stream = io.StringIO()
    configure("info", "json", stream=stream)
    logging.getLogger("carteiro.handlers.f").info("took %d", 3, extra={"topic": "orders", "odd": object})
    line = msgspec.json.decode(stream.getvalue())
    assert (line["level"], line["logger"], line["message"], line["topic"]) == (
        "info", "carteiro.handlers.f", "took 3", "orders",
    )  # fmt: skip
    assert line["odd"] == "<class 'object'>"


def test_an_app_that_set_up_logging_keeps_it(own_logging: logging.Logger) -> None:
    theirs = logging.NullHandler()
    logging.getLogger().addHandler(theirs)
    configure("debug")
    assert own_logging.handlers == []
    assert own_logging.level == logging.DEBUG
