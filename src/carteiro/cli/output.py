"""What commands print: tables on a terminal and plain columns elsewhere, JSON, times, bodies."""

from __future__ import annotations

import sys
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TextIO

import msgspec
import typer

from carteiro.errors import InvalidBody
from carteiro.handlers.codecs import decoder
from carteiro.message import CONTENT_TYPE, Message

if TYPE_CHECKING:
    from rich.table import Table

_decode = decoder(Any)

NO_STYLES: Final[Mapping[str, str]] = {}


def is_terminal(stream: TextIO | None = None) -> bool:
    return (stream or sys.stdout).isatty()


def confirm(question: str, yes: bool) -> None:
    """Ask, if someone is there to answer; raises typer.Abort on a no."""
    if not yes and is_terminal(sys.stdin) and not typer.confirm(question, err=True):
        raise typer.Abort


def show_json(value: Any) -> None:
    """One line, or indented on a terminal."""
    encoded = msgspec.json.encode(value)
    sys.stdout.write((msgspec.json.format(encoded) if is_terminal() else encoded).decode() + "\n")
    sys.stdout.flush()


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]], styles: Mapping[str, str] = NO_STYLES) -> None:
    """Numbers stand to the right. Plain columns are separated by at least two spaces; on a terminal, a cell whose text
    is one of `styles` is drawn in that.
    """
    if is_terminal():
        from rich.console import Console

        Console().print(rich_table(columns, rows, styles))
        return
    cells = [list(columns), *([_text(cell) for cell in row] for row in rows)]
    numeric = [_is_numeric(rows, index) for index in range(len(columns))]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    for line in cells:
        padded = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        )
        print("  ".join(padded).rstrip())


def rich_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], styles: Mapping[str, str] = NO_STYLES
) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        last = index == len(columns) - 1
        table.add_column(
            column, justify="right" if _is_numeric(rows, index) else "left", overflow="ellipsis" if last else "fold",
            no_wrap=last,
        )  # fmt: skip
    for row in rows:
        texts = ((cell, _text(cell)) for cell in row)
        table.add_row(*(Text(text, "dim" if cell in (0, None) else styles.get(text, "")) for cell, text in texts))
    return table


def _is_numeric(rows: Sequence[Sequence[object]], index: int) -> bool:
    return bool(rows) and all(isinstance(row[index], int | None) for row in rows)


def _text(cell: object) -> str:
    return "-" if cell is None else printable(str(cell)).replace("\n", " ")


def heading(text: str) -> str:
    """Bold on a terminal."""
    return f"\x1b[1m{text}\x1b[0m" if is_terminal() else text


def printable(text: str) -> str:
    """The text without what would steer a terminal: bodies and errors come from anywhere."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in "\n\t" else repr(letter)[1:-1] for letter in text)


def cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def age(seconds: float | None) -> str | None:
    """`0.4s`, `42s`, `3m 12s`, `5h 2m`, `6d 1h`: the two largest units."""
    if seconds is None:
        return None
    if seconds < 10:
        return f"{max(0.0, seconds):.1f}s"
    whole = int(seconds)
    for large, small, name, rest in ((86400, 3600, "d", "h"), (3600, 60, "h", "m"), (60, 1, "m", "s")):
        if whole >= large:
            return f"{whole // large}{name} {whole % large // small}{rest}"
    return f"{whole}s"


def local_time(at: float) -> str:
    """A time as people read it, in their own zone."""
    return datetime.fromtimestamp(at).astimezone().isoformat(" ", "milliseconds")


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def as_json(body: bytes, headers: Mapping[str, str]) -> Any:
    """A body as it appears in JSON output: itself where it is JSON, else text, else `{"base64": …}`."""
    try:
        value = _decode(Message("", "", body, None, headers, "", 0.0))
    except InvalidBody:
        value = body
    if isinstance(value, bytes):
        return {"base64": b64encode(value).decode()}
    text = isinstance(value, str) and value.encode() == body
    # JSON goes out digit by digit as it came in.
    return value if text or "msgpack" in headers.get(CONTENT_TYPE, "") else msgspec.Raw(body)


def as_text(body: bytes, headers: Mapping[str, str], *, indent: int = 2) -> str:
    """A body as people read it; `indent=0` for one line."""
    value = as_json(body, headers)
    return value if isinstance(value, str) else msgspec.json.format(msgspec.json.encode(value), indent=indent).decode()


def message_json(message: Message) -> dict[str, Any]:
    return {
        "id": message.id,
        "topic": message.topic,
        "key": message.key,
        "headers": dict(message.headers),
        "correlation_id": message.correlation_id,
        "published": message.published,
        "attempt": message.attempt,
        "body": as_json(message.body, message.headers),
    }
