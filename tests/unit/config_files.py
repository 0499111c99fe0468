"""What the tests of files of queues share: files, and what is said of them."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

from carteiro.config.loading import load, read
from carteiro.config.queues import Queues

TOUR = Path(__file__).parents[2] / "docs" / "tour" / "queues.yaml"


def written(folder: Path, text: str, name: str = "queues.yaml") -> str:
    """The file's path, from the folder on: what is said of it begins with its name."""
    (folder / name).write_text(dedent(text))
    return str(folder / name)


def loaded(folder: Path, text: str) -> Queues:
    return load(written(folder, text))


def said(folder: Path, text: str) -> list[str]:
    """What is wrong with it, each as `line:column: text`."""
    path = written(folder, text)
    queues, problems = read(path)
    assert (queues is None) == bool(problems)
    return [problem.removeprefix(f"{path}:") for problem in problems]
