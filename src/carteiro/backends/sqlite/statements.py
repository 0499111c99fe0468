"""The SQL of this backend, from its own files under `sql/`."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

_FOLDER = files("carteiro.backends.sqlite") / "sql"
_NAME = "-- name: "


def _load() -> dict[str, str]:
    text = (_FOLDER / "statements.sql").read_text("utf-8")
    blocks = text.split(_NAME)[1:]
    return {name.strip(): sql.strip() for name, _, sql in (block.partition("\n") for block in blocks)}


SQL = _load()
"""Each statement of `statements.sql` by its name."""

_INSERT_STEPS = (128, 16, 1)
DELIVERY_COLUMNS = (
    *("subscription", "visible_at", "published", "message_id", "topic", "body"),
    *("key", "headers", "correlation_id"),
    *("log_id", "lane", "due"),
)
BARE_WIDTH = 6
"""The columns of messages without key, headers and a correlation id of their own."""
DESCRIBED_WIDTH = 9
"""The columns of messages that are neither retained nor in a lane."""
LOG_COLUMNS = (
    *("id", "topic", "published", "due", "expires_at", "message_id"),
    *("key", "headers", "correlation_id", "body"),
)


@cache
def insert(table: str, columns: tuple[str, ...], rows: int) -> str:
    """One INSERT of so many rows: one step of SQLite, where `executemany` makes one a row at half the speed."""
    row = f"({', '.join('?' * len(columns))})"
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([row] * rows)}"


def steps(rows: int) -> list[int]:
    """Cut so many rows into sizes of which each is a statement that stays prepared."""
    cut: list[int] = []
    for step in _INSERT_STEPS:
        count, rows = divmod(rows, step)
        cut += [step] * count
    return cut


def migrations() -> list[str]:
    """The schema's steps, oldest first: version N is what the first N make."""
    found = sorted(file.name for file in _FOLDER.iterdir() if file.name.startswith("migration_"))
    return [(_FOLDER / name).read_text("utf-8") for name in found]
