"""The Lua is documented where it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from carteiro.backends.redis import scripts
from carteiro.backends.redis.scripts import Script

FILES = sorted((Path(scripts.__file__).parent / "lua").glob("*.lua"))
SCRIPTS = [value for value in vars(scripts).values() if isinstance(value, Script)]


def head(file: Path) -> str:
    """The comment at its top."""
    return re.match(r"(?:(?:--|#!).*\n)+", file.read_text())[0]  # type: ignore[index]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_file_says_at_its_top_what_always_holds(file: Path):
    assert "-- Invariant: " in head(file)


@pytest.mark.parametrize("file", [file for file in FILES if "#!lua" in head(file)], ids=lambda file: file.stem)
def test_each_script_says_at_its_top_what_it_reaches_takes_and_answers(file: Path):
    for part in ("needs", "keys", "request", "answer"):
        assert re.search(rf"^-- {part} +\S", head(file), re.MULTILINE), f"`{file.name}` does not name its {part}"


def test_there_is_a_script_for_each_file_that_is_one():
    assert {script.name for script in SCRIPTS} == {file.stem for file in FILES if "#!lua" in head(file)}
