"""The SQL of this backend, from its own files under `sql/`."""

from __future__ import annotations

from importlib.resources import files

_FOLDER = files("carteiro.backends.sqlite") / "sql"
_NAME = "-- name: "


def _load() -> dict[str, str]:
    text = (_FOLDER / "statements.sql").read_text("utf-8")
    blocks = text.split(_NAME)[1:]
    return {name.strip(): sql.strip() for name, _, sql in (block.partition("\n") for block in blocks)}


SQL = _load()
"""Each statement of `statements.sql` by its name."""


def migrations() -> list[str]:
    """The schema's steps, oldest first: version N is what the first N make."""
    found = sorted(file.name for file in _FOLDER.iterdir() if file.name.startswith("migration_"))
    return [(_FOLDER / name).read_text("utf-8") for name in found]
